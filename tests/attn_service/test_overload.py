"""A thousand requests, 300 of them aborted: every page ends free, and every client is answered once."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from trimaran.channel import Client, Received, Server
from trimaran.lifecycle import Stop
from trimaran.wire import (
    Abort,
    EngineToGateway,
    GatewayToEngine,
    Generate,
    RequestFailed,
    SamplingParams,
    TokenBatch,
)
from trimaran_attn.engine import Engine
from trimaran_attn.pages import PageAllocator
from trimaran_attn.runner import StepOutput
from trimaran_attn.scheduler import Limits, Scheduler, StepPlan
from trimaran_attn.service import AttnService
from trimaran_attn.worker import EngineWorker

VOCAB = 50
N_PAGES = 40
N_REQUESTS, N_ABORTED = 1000, 300
DEADLINE_S = 120.0


class QuickRunner:
    """The token after n is n + 1."""

    def run(self, plan: StepPlan) -> StepOutput:
        sampling = [chunk.request for chunk in plan.chunks if chunk.samples]
        rows = torch.zeros(len(sampling), VOCAB)
        for row, request in zip(rows, sampling, strict=True):
            (last,) = request.tokens(request.n_tokens - 1, request.n_tokens)
            row[(last + 1) % VOCAB] = 10.0
        return StepOutput(rows)


class FakeLink:
    """Experts that are always there."""

    def settle(self) -> None: ...

    def ready(self) -> bool:
        return True

    def stats(self) -> dict[str, dict[str, float]]:
        return {}

    def expert_tokens(self) -> dict[int, list[int]]:
        return {}


def make_engine(max_waiting: int) -> Engine:
    """Few pages, so that requests preempt one another."""
    limits = Limits(
        context_length=128, max_running=12, max_waiting=max_waiting, max_step_tokens=96, page_size=4
    )
    return Engine(Scheduler(limits, PageAllocator(N_PAGES)), QuickRunner(), VOCAB)


@pytest.fixture(params=[2000, 500], ids=["all fit", "some are refused"])
def service(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Engine]]:
    stop, engine = Stop(), make_engine(request.param)
    endpoint, link = f"ipc://{tmp_path}/attn.sock", FakeLink()

    def serve() -> None:
        worker = EngineWorker(lambda _: engine, link, "abc", request.param)  # type: ignore[arg-type]
        with Server[GatewayToEngine, EngineToGateway](endpoint, GatewayToEngine) as server:
            AttnService(server, worker, link, 12 + request.param).run(stop)  # type: ignore[arg-type]

    thread = Thread(target=serve)
    thread.start()
    yield endpoint, engine
    stop.request()
    thread.join(30)
    assert not thread.is_alive()


def make_prompt(source: random.Random) -> list[int]:
    """Half of them begin alike."""
    common = list(range(20)) if source.random() < 0.5 else []
    return common + [source.randrange(VOCAB) for _ in range(source.randint(1, 60))]


def test_every_client_is_answered_and_every_page_is_free(service: tuple[str, Engine]) -> None:
    endpoint, engine = service
    source = random.Random(5)
    names = [str(number) for number in range(N_REQUESTS)]
    aborted = set(source.sample(names, N_ABORTED))
    messages: list[Any] = [
        Generate(
            request_id=name,
            prompt_ids=make_prompt(source),
            sampling=SamplingParams(temperature=0, max_tokens=source.randint(1, 24)),
            priority=source.randint(-2, 2),
        )
        for name in names
    ]
    for name in aborted:  # some time after its request
        messages.insert(source.randint(int(name) + 1, len(messages)), Abort(request_id=name))
    with Client[EngineToGateway, GatewayToEngine](endpoint, EngineToGateway) as client:
        ends = converse(client, messages)
    assert set(ends) == set(names)
    reasons = Counter(ends.values())
    assert {name for name in names if ends[name] == "abort"} <= aborted
    assert set(reasons) <= {"length", "abort", "overloaded"}
    assert reasons["length"] >= N_REQUESTS - N_ABORTED - reasons["overloaded"]
    check_empty(engine)


def converse(client: Client[EngineToGateway, GatewayToEngine], messages: list[Any]) -> dict[str, str]:
    """How each request ended; none may end twice."""
    ends: dict[str, str] = {}
    waiting, deadline = list(reversed(messages)), time.monotonic() + DEADLINE_S
    while len(ends) < N_REQUESTS:
        assert time.monotonic() < deadline, f"{N_REQUESTS - len(ends)} requests were not answered"
        if waiting and client.send(waiting[-1]):
            waiting.pop()
        for event in client.recv_all() if waiting else [client.recv(0.1)]:
            if not isinstance(event, Received):
                continue
            message = event.message
            if isinstance(message, RequestFailed):
                note(ends, message.request_id, message.code)
            elif isinstance(message, TokenBatch) and message.finish_reason is not None:
                note(ends, message.request_id, message.finish_reason)
    return ends


def note(ends: dict[str, str], name: str, reason: str) -> None:
    assert name not in ends, f"{name} ended twice"
    ends[name] = reason


def check_empty(engine: Engine) -> None:
    pages = engine.scheduler.pages
    assert not engine.has_work
    assert pages.n_free == N_PAGES
    assert all(pages.references(page) == 0 for page in range(N_PAGES))
    assert engine.scheduler.counters.preemptions > 0
    assert engine.scheduler.counters.hit_tokens > 0
    assert not engine._samplers
