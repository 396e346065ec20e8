"""The attention service over a real socket, with an engine that needs no model, and how to talk to it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event as ThreadEvent
from threading import Thread
from typing import Any, TypeVar

import torch
from trimaran.channel import Client, Received, Server
from trimaran.errors import PeerError
from trimaran.lifecycle import Stop
from trimaran.wire import (
    EngineStatus,
    EngineStatusRequest,
    EngineToGateway,
    GatewayToEngine,
    Generate,
    SamplingParams,
    TokenBatch,
)
from trimaran_attn.engine import Engine
from trimaran_attn.pages import PageAllocator
from trimaran_attn.runner import StepOutput
from trimaran_attn.scheduler import Limits, Scheduler, StepPlan
from trimaran_attn.service import AttnService
from trimaran_attn.stopping import StepStop
from trimaran_attn.worker import EngineWorker

VOCAB = 50
T = TypeVar("T")
GatewayClient = Client[EngineToGateway, GatewayToEngine]


class FakeLink:
    """Experts that can go away."""

    def __init__(self) -> None:
        self.up = True
        self.settled = 0

    def connect(self, on_progress: object = None) -> None: ...

    def submit(self, *_: object) -> None: ...

    def wait(self, ticket: object) -> Any: ...

    def settle(self) -> None:
        self.settled += 1

    def ready(self) -> bool:
        return self.up

    def stats(self) -> dict[str, dict[str, float]]:
        return {"0": {"expert_tokens_total": 3.0}}

    def expert_tokens(self) -> dict[int, list[int]]:
        return {1: [3, 0]}

    def close(self) -> None: ...


class SlowRunner:
    """Each step takes a moment; the token after n is n + 1."""

    def __init__(self, link: FakeLink) -> None:
        self._link = link
        self.step_s = 0.002
        self.fault: Exception | None = None
        self.holding: StepStop | None = None
        self.held = ThreadEvent()

    def hold(self, stop: StepStop) -> None:
        """Let steps take for ever, unless they are stopped or released."""
        self.held.clear()
        self.holding = stop

    def run(self, plan: StepPlan) -> StepOutput:
        time.sleep(self.step_s)
        while self.holding is not None:
            self.held.set()
            self.holding.check()
            time.sleep(0.001)
        if not self._link.up:
            raise PeerError("expert service 0 is gone")
        if self.fault is not None:
            raise self.fault
        rows = torch.zeros(sum(chunk.samples for chunk in plan.chunks), VOCAB)
        sampling = [chunk.request for chunk in plan.chunks if chunk.samples]
        for row, request in zip(rows, sampling, strict=True):
            (last,) = request.tokens(request.n_tokens - 1, request.n_tokens)
            row[(last + 1) % VOCAB] = 10.0
        return StepOutput(rows)


@dataclass
class Bench:
    """A running service."""

    endpoint: str
    link: FakeLink
    runner: SlowRunner
    engine: Engine
    stop: Stop
    thread: Thread
    may_load: ThreadEvent
    errors: list[BaseException] = field(default_factory=list)

    def client(self) -> GatewayClient:
        return Client(self.endpoint, EngineToGateway)

    def end(self) -> None:
        self.may_load.set()
        self.stop.request()
        self.thread.join(10)
        assert not self.thread.is_alive()


def begin_bench(
    folder: Path, *, loaded: bool = True, max_waiting: int = 4, load_error: Exception | None = None
) -> Bench:
    """Start the service in a thread of this process; whoever began it ends it.

    Args:
        folder: for its socket.
        loaded: whether loading ends by itself, or waits for `may_load`.
        max_waiting: of the engine.
        load_error: what loading ends with.
    """
    link, stop, may_load = FakeLink(), Stop(), ThreadEvent()
    runner = SlowRunner(link)
    limits = Limits(
        context_length=4096, max_running=4, max_waiting=max_waiting, max_step_tokens=64, page_size=64
    )
    engine = Engine(Scheduler(limits, PageAllocator(256)), runner, VOCAB)

    def load(progress: Callable[[str, float], None]) -> Engine:
        progress("reading weights", 0.25)
        while not may_load.wait(0.02):
            progress("reading weights", 0.5)
        if load_error is not None:
            raise load_error
        return engine

    endpoint = f"ipc://{folder}/attn.sock"

    def serve() -> None:
        worker = EngineWorker(load, link, "abc", max_waiting)
        with Server[GatewayToEngine, EngineToGateway](endpoint, GatewayToEngine) as server:
            try:
                AttnService(server, worker, link, 4 + max_waiting).run(stop)
            except Exception as error:
                bench.errors.append(error)

    bench = Bench(endpoint, link, runner, engine, stop, Thread(target=serve), may_load)
    if loaded:
        may_load.set()
    bench.thread.start()
    return bench


def ask(client: GatewayClient, message: GatewayToEngine) -> None:
    deadline = time.monotonic() + 5
    while not client.send(message):
        assert time.monotonic() < deadline, "no connection"
        time.sleep(0.01)


def hear(client: GatewayClient, kind: type[T], timeout_s: float = 5.0) -> T:
    """The next message of a kind; others are dropped."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        event = client.recv(0.1)
        if isinstance(event, Received) and isinstance(event.message, kind):
            return event.message
    raise AssertionError(f"no {kind.__name__} came")


def wait_state(client: GatewayClient, state: str) -> EngineStatus:
    for _ in range(100):
        ask(client, EngineStatusRequest())
        status = hear(client, EngineStatus)
        if status.state == state:
            return status
        time.sleep(0.02)
    raise AssertionError(f"state {state} never came, last {status}")


def generate(name: str, prompt: list[int] | None = None, **sampling: Any) -> Generate:
    params = SamplingParams(temperature=0.0, **sampling)
    return Generate(request_id=name, prompt_ids=prompt or [1], sampling=params)


def finish(client: GatewayClient, name: str) -> tuple[list[int], str | None]:
    ids: list[int] = []
    while True:
        batch = hear(client, TokenBatch)
        if batch.request_id == name:
            ids += batch.ids
            if batch.finish_reason:
                return ids, batch.finish_reason
