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


def test_samples_of_an_answer_go_to_one_asker(tmp_path: Path) -> None:
    """A dashboard and the live panel may ask at once; a sample that both took would count twice."""

    async def scenario(client: EngineClient, engine: Engine) -> None:
        asking = [asyncio.create_task(client.stats()) for _ in range(2)]
        for number in range(2):
            peer = (await expect(engine, EngineStatsRequest)).peer
            observations = {"x_seconds": [float(number)]}
            await engine.send(peer, EngineStats(counters={}, gauges={}, observations=observations))
        answers = [await task for task in asking]
        assert [answer and answer.observations["x_seconds"] for answer in answers] == [[0.0], [1.0]]

    run(tmp_path, scenario)
