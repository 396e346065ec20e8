"""A pool of engines that speak the real protocol, each scripted by the test."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from trimaran.channel import AsyncServer, Received
from trimaran.errors import OverloadedError, PeerError
from trimaran.wire import (
    Abort,
    EngineStatus,
    EngineStatusRequest,
    EngineToGateway,
    GatewayToEngine,
    Generate,
    RequestFailed,
    SamplingParams,
    TokenBatch,
)
from trimaran_gateway.engine.client import EngineClient
from trimaran_gateway.engine.pool import MOST_AHEAD, EnginePool
from trimaran_gateway.engine.prefixes import BLOCK


@dataclass
class Engine:
    """One attention service: what it was asked, and its answers, which the test sends."""

    endpoint: str
    name: str
    asked: asyncio.Queue[Generate] = field(default_factory=asyncio.Queue)
    aborted: asyncio.Queue[str] = field(default_factory=asyncio.Queue)

    def start(self, instance: str = "") -> None:
        self.status = EngineStatus(state="ready", instance=instance or self.name, context_length=4096)
        self.server: AsyncServer[GatewayToEngine, EngineToGateway] = AsyncServer(
            self.endpoint, GatewayToEngine
        )
        self.task = asyncio.create_task(self._serve())

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        self.server.close()

    async def tell(self, request_id: str, *ids: int, finish: str | None = None) -> None:
        await self.server.send(self.peer, TokenBatch(request_id=request_id, ids=[*ids], finish_reason=finish))

    async def refuse(self, request_id: str, code: str) -> None:
        await self.server.send(self.peer, RequestFailed(request_id=request_id, code=code, message="no"))

    async def _serve(self) -> None:
        while True:
            event = await self.server.recv()
            assert isinstance(event, Received)
            self.peer = event.peer
            if isinstance(event.message, EngineStatusRequest):
                await self.server.send(event.peer, self.status)
            elif isinstance(event.message, Generate):
                self.asked.put_nowait(event.message)
            elif isinstance(event.message, Abort):
                self.aborted.put_nowait(event.message.request_id)


Scenario = Callable[[EnginePool, Engine, Engine], Awaitable[None]]


def run(tmp_path: Path, scenario: Scenario) -> None:
    """Runs `scenario` with a pool of two engines that are ready."""

    async def main() -> None:
        engines = [Engine(f"ipc://{tmp_path}/{name}.sock", name) for name in "ab"]
        pool = EnginePool([EngineClient(engine.endpoint, poll_s=0.05) for engine in engines])
        for engine in engines:
            engine.start()
        await pool.start()
        try:
            async with asyncio.timeout(60):
                await until(lambda: pool.status is not None and pool.status.state == "ready")
                await scenario(pool, *engines)
        finally:
            await pool.close()
            for engine in engines:
                await engine.stop()

    asyncio.run(main())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


def request(name: str, *ids: int, deadline: float | None = None) -> Generate:
    return Generate(request_id=name, prompt_ids=[*ids] or [1], sampling=SamplingParams(), deadline=deadline)


async def answer(pool: EnginePool, engines: tuple[Engine, Engine], message: Generate, *ids: int) -> Engine:
    """Have a request answered whole; returns the engine that was asked."""
    async with pool.generate(message) as stream:
        await until(lambda: any(not engine.asked.empty() for engine in engines))
        asked = next(engine for engine in engines if not engine.asked.empty())
        asked.asked.get_nowait()
        await asked.tell(message.request_id, *ids, finish="stop")
        assert (await anext(stream)).ids == [*ids]
        assert stream.is_over
    return asked


def test_requests_are_spread(tmp_path: Path) -> None:
    async def scenario(pool: EnginePool, a: Engine, b: Engine) -> None:
        async with pool.generate(request("1")), pool.generate(request("2")), pool.generate(request("3")):
            await until(lambda: a.asked.qsize() + b.asked.qsize() == 3)
            assert {a.asked.qsize(), b.asked.qsize()} == {1, 2}
            assert pool.in_flight == 3
        assert pool.in_flight == 0

    run(tmp_path, scenario)


def test_a_conversation_stays_where_its_cache_is(tmp_path: Path) -> None:
    async def scenario(pool: EnginePool, a: Engine, b: Engine) -> None:
        prompts = {name: [number] * (3 * BLOCK) for number, name in enumerate("xyz")}
        homes = {name: await answer(pool, (a, b), request(name, *ids), 5) for name, ids in prompts.items()}
        assert {engine.name for engine in homes.values()} == {"a", "b"}, "what none knows goes to the emptier"
        for name, ids in prompts.items():
            longer = request(f"{name}2", *ids, *range(BLOCK))
            assert await answer(pool, (a, b), longer, 5) is homes[name]

    run(tmp_path, scenario)


def test_the_answer_is_part_of_the_next_prompt(tmp_path: Path) -> None:
    async def scenario(pool: EnginePool, a: Engine, b: Engine) -> None:
        long_answer = list(range(4 * BLOCK))
        home = await answer(pool, (a, b), request("1", 7, 8), *long_answer)
        await answer(pool, (a, b), request("2", *[9] * (6 * BLOCK)), 5)
        assert await answer(pool, (a, b), request("3", 7, 8, *long_answer, 3), 5) is home

    run(tmp_path, scenario)


def test_a_common_beginning_does_not_make_one_engine_do_all(tmp_path: Path) -> None:
    async def scenario(pool: EnginePool, a: Engine, b: Engine) -> None:
        system = [3] * BLOCK
        for number in range(4):
            await answer(pool, (a, b), request(str(number), *system, *[number] * (3 * BLOCK)), 5)
        sizes = [len(seat.seen) for seat in pool._seats]
        assert min(sizes) > 3, "a quarter of the prompt is not worth it"

    run(tmp_path, scenario)


def test_a_busy_engine_gives_its_conversations_away(tmp_path: Path) -> None:
    async def scenario(pool: EnginePool, a: Engine, b: Engine) -> None:
        prompt = [4] * (2 * BLOCK)
        home = await answer(pool, (a, b), request("first", *prompt), 5)
        async with asyncio.TaskGroup() as group:
            done = asyncio.Event()

            async def hold(number: int) -> None:
                async with pool.generate(request(str(number), *prompt)):
                    await done.wait()

            for number in range(MOST_AHEAD + 2):
                group.create_task(hold(number))
            await until(lambda: a.asked.qsize() + b.asked.qsize() == MOST_AHEAD + 2)
            assert home.asked.qsize() == MOST_AHEAD + 1
            done.set()

    run(tmp_path, scenario)


def test_what_was_not_begun_is_asked_of_another_engine(tmp_path: Path) -> None:
    async def scenario(pool: EnginePool, a: Engine, b: Engine) -> None:
        async with pool.generate(request("1", deadline=50.0)) as stream:
            reading = asyncio.ensure_future(anext(stream))
            first = await first_asked(a, b)
            other = b if first is a else a
            await first.stop()
            again = await other.asked.get()
            assert again.request_id == "1"
            assert again.deadline is not None
            assert 0 < again.deadline < 50, "the time that was lost is not given back"
            assert pool.in_flight == 1
            await other.tell("1", 8, finish="stop")
            assert (await reading).ids == [8]

    run(tmp_path, scenario)


async def first_asked(a: Engine, b: Engine) -> Engine:
    await until(lambda: not (a.asked.empty() and b.asked.empty()))
    return b if a.asked.empty() else a


def test_what_was_begun_fails_and_the_others_go_on(tmp_path: Path) -> None:
    async def scenario(pool: EnginePool, a: Engine, b: Engine) -> None:
        async with pool.generate(request("1")) as broken, pool.generate(request("2")) as whole:
            await until(lambda: not a.asked.empty() and not b.asked.empty())
            await a.tell("1", 5)
            assert (await anext(broken)).ids == [5]
            await a.stop()
            with pytest.raises(PeerError, match="went away"):
                await anext(broken)
            await b.tell("2", 6, finish="stop")
            assert (await anext(whole)).ids == [6]
        status = pool.status
        assert status is not None
        assert (status.state, status.detail) == ("degraded", "engine 0 is away")
        assert pool.is_ready
        a.start(instance="a again")
        await until(lambda: pool.status is not None and pool.status.state == "ready")
        assert len(pool._seats[0].seen) == 0

    run(tmp_path, scenario)


def test_a_restarted_engine_has_forgotten(tmp_path: Path) -> None:
    async def scenario(pool: EnginePool, a: Engine, b: Engine) -> None:
        prompt = [4] * (2 * BLOCK)
        home = await answer(pool, (a, b), request("1", *prompt), 5)
        await home.stop()
        await until(lambda: pool.status is not None and pool.status.state == "degraded")
        home.start(instance="another")
        await until(lambda: pool.status is not None and pool.status.state == "ready")
        async with pool.generate(request("2", *prompt[:BLOCK])):
            pass
        seat = next(seat for seat in pool._seats if seat.instance == "another")
        assert len(seat.seen) <= 1

    run(tmp_path, scenario)


def test_a_full_engine_is_passed_over_and_all_full_is_said(tmp_path: Path) -> None:
    async def scenario(pool: EnginePool, a: Engine, b: Engine) -> None:
        async with pool.generate(request("1")) as stream:
            reading = asyncio.ensure_future(anext(stream))
            first = await first_asked(a, b)
            await first.refuse("1", "overloaded")
            other = b if first is a else a
            await other.asked.get()
            await other.refuse("1", "overloaded")
            with pytest.raises(OverloadedError):
                await reading

    run(tmp_path, scenario)


def test_no_engine_is_asked_when_the_gateway_stops(tmp_path: Path) -> None:
    async def scenario(pool: EnginePool, a: Engine, b: Engine) -> None:
        async with pool.generate(request("1")) as stream:
            first = await first_asked(a, b)
            await pool.give_up("the server is shutting down")
            with pytest.raises(PeerError, match="shutting down"):
                await anext(stream)
            other = b if first is a else a
            assert other.asked.empty()

    run(tmp_path, scenario)


def test_no_engine_at_all(tmp_path: Path) -> None:
    async def main() -> None:
        pool = EnginePool([EngineClient(f"ipc://{tmp_path}/{name}.sock", poll_s=0.05) for name in "ab"])
        await pool.start()
        try:
            assert pool.status is None
            assert await pool.stats() is None
            with pytest.raises(PeerError, match="the engine is not running"):
                async with pool.generate(request("1")):
                    pass
        finally:
            await pool.close()

    asyncio.run(main())


def test_leaving_early_aborts(tmp_path: Path) -> None:
    async def scenario(pool: EnginePool, a: Engine, b: Engine) -> None:
        async with pool.generate(request("1")):
            first = await first_asked(a, b)
        assert await first.aborted.get() == "1"

    run(tmp_path, scenario)


def test_a_lost_stream_is_nobodys_work(tmp_path: Path) -> None:
    """A stream that fails is no longer counted as its engine's work while another answers."""

    async def scenario(pool: EnginePool, a: Engine, b: Engine) -> None:
        async with pool.generate(request("1")) as stream:
            first = await first_asked(a, b)
            reading: Any = asyncio.ensure_future(anext(stream))
            await first.refuse("1", "unavailable")
            other = b if first is a else a
            await other.asked.get()
            clients = {seat.client._endpoint: seat.client.in_flight for seat in pool._seats}
            assert clients == {first.endpoint: 0, other.endpoint: 1}
            await other.tell("1", 2, finish="stop")
            assert (await reading).ids == [2]

    run(tmp_path, scenario)
