"""Two engines that speak the real protocol, each scripted by the test, and a pool of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trimaran.channel import AsyncServer, Received
from trimaran.wire import (
    Abort,
    EngineStats,
    EngineStatsRequest,
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
from trimaran_gateway.engine.pool import PATIENCE_S, EnginePool


@dataclass
class Engine:
    """One attention service: what it was asked, and its answers, which the test sends.

    It reads nothing while `awake` is not set, and tells no counters without `stats`.
    """

    endpoint: str
    name: str
    asked: asyncio.Queue[Generate] = field(default_factory=asyncio.Queue)
    aborted: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    awake: asyncio.Event = field(default_factory=asyncio.Event)
    stats: EngineStats | None = None

    def start(self, instance: str = "") -> None:
        self.awake.set()
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
            await self.awake.wait()
            assert isinstance(event, Received)
            self.peer = event.peer
            match event.message:
                case EngineStatusRequest():
                    await self.server.send(event.peer, self.status)
                case EngineStatsRequest() if self.stats is not None:
                    await self.server.send(event.peer, self.stats)
                case Generate():
                    self.asked.put_nowait(event.message)
                case Abort(request_id=request_id):
                    self.aborted.put_nowait(request_id)


Scenario = Callable[[EnginePool, Engine, Engine], Awaitable[None]]


def run(tmp_path: Path, scenario: Scenario, *, patience_s: float = PATIENCE_S, **options: Any) -> None:
    """Runs `scenario` with a pool of two engines that are ready; `options` are those of `EngineClient`."""

    async def main() -> None:
        engines = [Engine(f"ipc://{tmp_path}/{name}.sock", name) for name in "ab"]
        clients = [EngineClient(engine.endpoint, poll_s=0.05, **options) for engine in engines]
        pool = EnginePool(clients, patience_s=patience_s)
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


async def first_asked(a: Engine, b: Engine) -> Engine:
    await until(lambda: not (a.asked.empty() and b.asked.empty()))
    return b if a.asked.empty() else a
