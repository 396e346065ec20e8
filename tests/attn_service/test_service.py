"""The service over a real socket, with an engine that needs no model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from threading import Event as ThreadEvent
from threading import Thread
from typing import Any, TypeVar

import psutil
import pytest
import torch
from trimaran.channel import Client, Received, Server
from trimaran.errors import KernelError, PeerError
from trimaran.lifecycle import Stop
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
from trimaran_attn.engine import Engine
from trimaran_attn.pages import PageAllocator
from trimaran_attn.runner import StepOutput
from trimaran_attn.scheduler import Limits, Scheduler, StepPlan
from trimaran_attn.service import AttnService
from trimaran_attn.stopping import StepStop
from trimaran_attn.worker import AbortCommand, EngineWorker

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


Start = Callable[..., Bench]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Bench] = []

    def begin(*, loaded: bool = True, max_waiting: int = 4, load_error: Exception | None = None) -> Bench:
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

        endpoint = f"ipc://{tmp_path}/attn.sock"

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
        started.append(bench)
        return bench

    yield begin
    for bench in started:
        bench.end()


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


def test_a_request_is_answered(start: Start) -> None:
    with start().client() as client:
        status = wait_state(client, "ready")
        assert (status.model_fingerprint, status.context_length, status.max_waiting) == ("abc", 4096, 4)
        ask(client, generate("r", max_tokens=3))
        assert finish(client, "r") == ([2, 3, 4], "length")


def test_an_abort_ends_the_step_that_computes_for_nobody_else(start: Start) -> None:
    bench = start()
    with bench.client() as client:
        wait_state(client, "ready")
        bench.runner.hold(bench.engine.stop)
        ask(client, generate("long", [1] * 3000))
        assert bench.runner.held.wait(10)
        ask(client, Abort(request_id="long"))
        assert finish(client, "long") == ([], "abort")
        assert bench.engine.scheduler.pages.n_free == 256
        assert bench.link.settled == 1
        bench.runner.holding = None
        ask(client, generate("next", max_tokens=2))
        assert finish(client, "next") == ([2, 3], "length")


def test_the_service_ends_within_a_step(start: Start) -> None:
    bench = start()
    with bench.client() as client:
        wait_state(client, "ready")
        bench.runner.hold(bench.engine.stop)
        ask(client, generate("a"))
        ask(client, generate("b"))
        assert bench.runner.held.wait(10)
        bench.stop.request()
        assert hear(client, RequestFailed).code == "unavailable"
        bench.thread.join(10)
        assert not bench.thread.is_alive()
    assert not bench.errors


def test_each_worker_names_itself_anew_and_keeps_its_name(start: Start) -> None:
    names = []
    for loaded in (False, True):
        bench = start(loaded=loaded)
        with bench.client() as client:
            names.append(wait_state(client, "ready" if loaded else "loading").instance)
            bench.may_load.set()
            assert wait_state(client, "ready").instance == names[-1]
        bench.end()
    assert all(len(name) == 16 for name in names)
    assert names[0] != names[1]


def test_while_it_loads_status_is_answered_and_requests_are_refused(start: Start) -> None:
    bench = start(loaded=False)
    with bench.client() as client:
        status = wait_state(client, "loading")
        assert status.detail == "reading weights"
        assert 0.2 < status.progress < 1
        ask(client, generate("early"))
        failed = hear(client, RequestFailed)
        assert failed.code == "unavailable"
        assert "loading" in failed.message
        bench.may_load.set()
        assert hear(client, EngineStatus).state == "ready"  # told without being asked


def test_a_failure_to_load_ends_the_service(start: Start) -> None:
    bench = start(load_error=PeerError("no expert service at x"))
    bench.thread.join(5)
    assert [str(error) for error in bench.errors] == ["no expert service at x"]


def test_a_stop_while_loading_is_quick(start: Start) -> None:
    bench = start(loaded=False)
    with bench.client() as client:
        wait_state(client, "loading")
    began = time.monotonic()
    bench.stop.request()
    bench.thread.join(5)
    assert time.monotonic() - began < 2
    assert bench.errors == []


def test_status_is_answered_while_a_step_runs(start: Start) -> None:
    bench = start()
    with bench.client() as client:
        wait_state(client, "ready")
        bench.runner.step_s = 1.0
        ask(client, generate("r", max_tokens=1))
        time.sleep(0.1)
        began = time.monotonic()
        ask(client, EngineStatusRequest())
        hear(client, EngineStatus)
        assert time.monotonic() - began < 0.5


def test_a_token_is_told_while_the_next_step_computes(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = start()
    steps, may_end, run = count(), ThreadEvent(), bench.runner.run

    def run_until_told(plan: StepPlan) -> StepOutput:
        if next(steps) == 1:
            assert may_end.wait(10)
        return run(plan)

    monkeypatch.setattr(bench.runner, "run", run_until_told)
    with bench.client() as client:
        wait_state(client, "ready")
        ask(client, generate("a", max_tokens=2))
        first = hear(client, TokenBatch)
        assert (first.ids, first.finish_reason) == ([2], None)
        may_end.set()
        last = hear(client, TokenBatch)
        assert (last.ids, last.finish_reason) == ([3], "length")


def test_abort_ends_a_request_and_unknown_ids_are_ignored(start: Start) -> None:
    bench = start()
    with bench.client() as client:
        wait_state(client, "ready")
        ask(client, Abort(request_id="never heard of"))
        ask(client, generate("r"))
        hear(client, TokenBatch)
        ask(client, Abort(request_id="r"))
        assert finish(client, "r")[1] == "abort"
        assert bench.engine.scheduler.pages.n_free == 256


def test_a_request_is_aborted_once_however_often_it_is_asked(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, puts = start(), []
    put = EngineWorker.put
    monkeypatch.setattr(EngineWorker, "put", lambda self, command: (puts.append(command), put(self, command)))
    with bench.client() as client:
        wait_state(client, "ready")
        bench.runner.step_s = 0.5
        ask(client, generate("r"))
        for _ in range(50):
            ask(client, Abort(request_id="r"))
        assert finish(client, "r")[1] == "abort"
    assert [type(command) for command in puts].count(AbortCommand) == 1


def test_a_command_that_breaks_fails_its_request_only(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = start()
    submit = bench.engine.submit

    def break_some(message: Generate, received_at: float) -> RequestFailed | None:
        if message.prompt_ids[0] == 13:
            raise RuntimeError("a bug")
        return submit(message, received_at)

    monkeypatch.setattr(bench.engine, "submit", break_some)
    with bench.client() as client:
        wait_state(client, "ready")
        ask(client, generate("good", max_tokens=200, ignore_eos=True))
        ask(client, generate("bad", [13]))
        failed = hear(client, RequestFailed)
        assert (failed.request_id, failed.code) == ("bad", "internal")
        assert finish(client, "good")[1] == "length"


def test_the_end_of_the_thread_ends_the_service(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = start()
    with bench.client() as client:
        wait_state(client, "ready")

        def ready() -> bool:
            raise RuntimeError("a bug")

        monkeypatch.setattr(bench.link, "ready", ready)
        assert hear(client, EngineStatus).state == "draining"
    bench.thread.join(5)
    assert [str(error) for error in bench.errors] == ["a bug"]


def test_two_gateways_may_use_the_same_id(start: Start) -> None:
    bench = start()
    with bench.client() as one, bench.client() as two:
        wait_state(one, "ready")
        ask(one, generate("same", [1], max_tokens=3))
        ask(two, generate("same", [11], max_tokens=3))
        assert finish(one, "same") == ([2, 3, 4], "length")
        assert finish(two, "same") == ([12, 13, 14], "length")


def test_an_id_in_use_is_refused_and_the_first_goes_on(start: Start) -> None:
    bench = start()
    bench.runner.step_s = 0.05
    with bench.client() as client:
        wait_state(client, "ready")
        ask(client, generate("r", max_tokens=5))
        ask(client, generate("r", max_tokens=5))
        assert "in use" in hear(client, RequestFailed).message


def test_overload_is_refused_at_once(start: Start) -> None:
    bench = start(max_waiting=2)
    bench.runner.step_s = 0.2
    with bench.client() as client:
        wait_state(client, "ready")
        for number in range(9):
            ask(client, generate(str(number), max_tokens=2))
        failures = [hear(client, RequestFailed) for _ in range(3)]
        assert {failed.code for failed in failures} == {"overloaded"}


def test_requests_of_a_gateway_that_went_away_are_aborted(start: Start) -> None:
    bench = start()
    with bench.client() as stays:
        wait_state(stays, "ready")
        with bench.client() as leaves:
            ask(leaves, generate("r"))
            hear(leaves, TokenBatch)
        deadline = time.monotonic() + 5
        while bench.engine.has_work and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not bench.engine.has_work
        assert bench.engine.scheduler.counters.finished["abort"] == 1


def test_lost_experts_fail_requests_and_coming_back_heals(start: Start) -> None:
    bench = start()
    with bench.client() as client:
        wait_state(client, "ready")
        ask(client, generate("r"))
        hear(client, TokenBatch)
        bench.link.up = False
        failed = hear(client, RequestFailed)
        assert (failed.request_id, failed.code) == ("r", "unavailable")
        wait_state(client, "degraded")
        ask(client, generate("refused"))
        assert hear(client, RequestFailed).code == "unavailable"
        bench.link.up = True
        wait_state(client, "ready")
        ask(client, generate("again", max_tokens=2))
        assert finish(client, "again") == ([2, 3], "length")


def test_lost_experts_are_noticed_when_idle(start: Start) -> None:
    bench = start()
    with bench.client() as client:
        wait_state(client, "ready")
        bench.link.up = False
        assert hear(client, EngineStatus).state == "degraded"


@pytest.mark.parametrize(
    ("fault", "said"),
    [(KernelError("a NaN in layer 3"), "a NaN in layer 3"), (RuntimeError("oops"), "see the attention")],
)
def test_a_step_that_breaks_off_fails_its_requests_only(start: Start, fault: Exception, said: str) -> None:
    bench = start()
    with bench.client() as client:
        wait_state(client, "ready")
        bench.runner.fault = fault
        ask(client, generate("broken"))
        failed = hear(client, RequestFailed)
        assert failed.code == "internal"
        assert said in failed.message
        assert bench.link.settled == 1
        bench.runner.fault = None
        ask(client, generate("whole", max_tokens=2))
        assert finish(client, "whole")


def test_stopping_answers_open_requests(start: Start) -> None:
    bench = start()
    bench.runner.step_s = 0.05
    with bench.client() as client:
        wait_state(client, "ready")
        ask(client, generate("r"))
        hear(client, TokenBatch)
        bench.stop.request()
        failed = hear(client, RequestFailed)
        assert (failed.code, failed.message) == ("unavailable", "the attention service is stopping")


def test_stats_include_the_experts(start: Start) -> None:
    with start().client() as client:
        wait_state(client, "ready")
        ask(client, generate("r", max_tokens=3))
        finish(client, "r")
        ask(client, EngineStatsRequest())
        stats = hear(client, EngineStats)
        assert stats.counters["generation_tokens_total"] == 3
        assert stats.experts == {"0": {"expert_tokens_total": 3.0}}
        ask(client, EngineStatusRequest())
        assert stats.instance == hear(client, EngineStatus).instance != ""


def test_rubbish_is_survived(start: Start) -> None:
    bench = start()
    with Client[Any, Any](bench.endpoint, Any) as rubbish, bench.client() as client:
        wait_state(client, "ready")
        ask(rubbish, TokenBatch(request_id="x", ids=[]))  # type: ignore[arg-type]
        ask(client, generate("r", max_tokens=1))
        assert finish(client, "r") == ([2], "length")


def test_idle_costs_no_cpu(start: Start) -> None:
    with start().client() as client:
        wait_state(client, "ready")
        process = psutil.Process()
        before = process.cpu_times()
        time.sleep(1.0)
        after = process.cpu_times()
        assert after.user + after.system - before.user - before.system < 0.05
