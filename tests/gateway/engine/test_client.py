from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from trimaran.channel import AsyncServer, Received
from trimaran.errors import OverloadedError, PeerError
from trimaran.wire import (
    Abort,
    EngineStats,
    EngineStatsRequest,
    EngineStatus,
    EngineStatusRequest,
    EngineToGateway,
    GatewayToEngine,
    Generate,
    SamplingParams,
    TokenBatch,
)
from trimaran_gateway.engine import client as client_module
from trimaran_gateway.engine.client import EngineClient

Engine = AsyncServer[GatewayToEngine, EngineToGateway]
REQUEST = Generate(request_id="r", prompt_ids=[1], sampling=SamplingParams())
READY = EngineStatus(state="ready", instance="a", context_length=64)


def run(tmp_path: Path, scenario: Callable[[EngineClient, Engine], Awaitable[None]], **options: Any) -> None:
    """Runs `scenario` with a connected client and the engine's end of the link."""

    async def main() -> None:
        endpoint = f"ipc://{tmp_path}/attn.sock"
        engine: Engine = AsyncServer(endpoint, GatewayToEngine)
        client = EngineClient(endpoint, **{"poll_s": 0.05, **options})
        await client.start()
        try:
            async with asyncio.timeout(30):
                await answer_status(engine)
                assert await client.wait_ready(10)
                await scenario(client, engine)
        finally:
            await client.close()
            engine.close()

    asyncio.run(main())


async def answer_status(engine: Engine) -> bytes:
    event = await expect(engine, EngineStatusRequest)
    await engine.send(event.peer, READY)
    return bytes(event.peer)


async def expect(engine: Engine, kind: type) -> Received[Any]:
    while True:
        event = await engine.recv()
        assert isinstance(event, Received)
        if isinstance(event.message, kind):
            return event


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


def test_answers_go_to_their_requests(tmp_path: Path) -> None:
    async def scenario(client: EngineClient, engine: Engine) -> None:
        other = Generate(request_id="s", prompt_ids=[2], sampling=SamplingParams())
        async with client.generate(REQUEST) as first, client.generate(other) as second:
            peer = (await expect(engine, Generate)).peer
            for name in ("s", "unknown", "r"):
                last = TokenBatch(request_id=name, ids=[ord(name[0])], finish_reason="stop")
                await engine.send(peer, last)
            assert (await anext(first)).ids == [ord("r")]
            assert (await anext(second)).ids == [ord("s")]
        assert client.in_flight == 0

    run(tmp_path, scenario)


def test_leaving_early_aborts(tmp_path: Path) -> None:
    async def scenario(client: EngineClient, engine: Engine) -> None:
        async with client.generate(REQUEST):
            await expect(engine, Generate)
        assert (await expect(engine, Abort)).message == Abort(request_id="r")

    run(tmp_path, scenario)


def test_a_slow_reader_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = client_module.EngineStream
    monkeypatch.setattr(client_module, "EngineStream", lambda name: small(name, max_pending=3))

    async def scenario(client: EngineClient, engine: Engine) -> None:
        async with client.generate(REQUEST) as stream:
            peer = (await expect(engine, Generate)).peer
            for token in range(5):
                await engine.send(peer, TokenBatch(request_id="r", ids=[token]))
            await expect(engine, Abort)
            with pytest.raises(OverloadedError, match="slowly"):
                async for _ in stream:
                    pass

    run(tmp_path, scenario)


def test_a_silent_engine_is_given_up(tmp_path: Path) -> None:
    async def scenario(client: EngineClient, engine: Engine) -> None:
        async with client.generate(REQUEST) as stream:
            with pytest.raises(PeerError, match="does not answer"):
                await anext(stream)
        with pytest.raises(PeerError, match="not running"):
            async with client.generate(REQUEST):
                pass
        await answer_status(engine)
        assert await client.wait_ready(10)

    run(tmp_path, scenario, silence_s=0.3)


def test_loading_after_ready_is_a_restart(tmp_path: Path) -> None:
    async def scenario(client: EngineClient, engine: Engine) -> None:
        async with client.generate(REQUEST) as stream:
            peer = (await expect(engine, Generate)).peer
            await engine.send(peer, EngineStatus(state="loading", instance="a"))
            with pytest.raises(PeerError, match="restarted"):
                await anext(stream)

    run(tmp_path, scenario)


def test_a_hung_engine_drops_what_it_lost(tmp_path: Path) -> None:
    """When it wakes up it reads the abort; what it sends until then is counted and goes to nobody."""

    async def scenario(client: EngineClient, engine: Engine) -> None:
        async with client.generate(REQUEST) as stream:
            peer = (await expect(engine, Generate)).peer
            with pytest.raises(PeerError, match="does not answer"):
                await anext(stream)
            await engine.send(peer, TokenBatch(request_id="r", ids=[5, 6]))
            assert (await expect(engine, Abort)).message == Abort(request_id="r")
            await engine.send(peer, TokenBatch(request_id="r", ids=[7], finish_reason="abort"))
            await until(lambda: client.late_tokens == 3)
            assert stream.is_over

    run(tmp_path, scenario, silence_s=0.3)


def test_a_failed_stream_takes_nothing_more(tmp_path: Path) -> None:
    async def scenario(client: EngineClient, engine: Engine) -> None:
        async with client.generate(REQUEST) as stream:
            peer = (await expect(engine, Generate)).peer
            await client.give_up("enough")
            await engine.send(peer, TokenBatch(request_id="r", ids=[5]))
            await until(lambda: client.late_tokens == 1)
            with pytest.raises(PeerError, match="enough"):
                await anext(stream)

    run(tmp_path, scenario)


def test_slow_is_not_gone(tmp_path: Path) -> None:
    async def scenario(client: EngineClient, engine: Engine) -> None:
        assert client.status == READY
        await until(lambda: client.status is not None and client.status.state == "degraded")
        assert client.status is not None
        assert client.status.detail.startswith("slow, it has said nothing for ")
        assert client.is_ready
        await answer_status(engine)
        await until(lambda: client.status == READY)

    run(tmp_path, scenario, slow_s=0.5)


def report(engine_total: float, *samples: float) -> EngineStats:
    return EngineStats(
        counters={"x_total": engine_total}, gauges={}, observations={"x_seconds": [*samples]}, instance="a"
    )


def test_every_report_is_booked_once(tmp_path: Path) -> None:
    """A dashboard and the live panel may ask at once, and an answer may come when nobody waits any more."""

    async def scenario(client: EngineClient, engine: Engine) -> None:
        asking = [asyncio.create_task(client.refresh()) for _ in range(2)]
        for number in range(2):
            peer = (await expect(engine, EngineStatsRequest)).peer
            await engine.send(peer, report(number + 1, float(number)))
        assert [await task for task in asking] == [True, True]
        await engine.send(peer, report(7, 2.0))
        await until(lambda: client.ledger.counters["x_total"] == 7)
        assert client.ledger.take_observations() == {"x_seconds": [0.0, 1.0, 2.0]}
        assert client.ledger.take_observations() == {}

    run(tmp_path, scenario)


def test_a_report_that_does_not_come_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "STATS_TIMEOUT_S", 0.05)

    async def scenario(client: EngineClient, engine: Engine) -> None:
        client.ledger.take(report(7))
        assert not await client.refresh()
        assert client.ledger.counters == {"x_total": 7}

    run(tmp_path, scenario)
