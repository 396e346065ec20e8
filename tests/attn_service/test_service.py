"""The service over a real socket, with an engine that needs no model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from threading import Event as ThreadEvent
from typing import Any

import psutil
import pytest
from attn_bench import Bench, ask, begin_bench, finish, generate, hear, wait_state
from trimaran.channel import Client
from trimaran.errors import KernelError, PeerError
from trimaran.wire import (
    Abort,
    EngineStats,
    EngineStatsRequest,
    EngineStatus,
    EngineStatusRequest,
    Generate,
    RequestFailed,
    TokenBatch,
)
from trimaran_attn.runner import StepOutput
from trimaran_attn.scheduler import StepPlan
from trimaran_attn.worker import EXPERTS_AWAY, AbortCommand, EngineWorker

Start = Callable[..., Bench]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Bench] = []

    def begin(**options: Any) -> Bench:
        started.append(begin_bench(tmp_path, **options))
        return started[-1]

    yield begin
    for bench in started:
        bench.end()


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


def test_a_stop_ends_loading(start: Start) -> None:
    bench = start(loaded=False)
    with bench.client() as client:
        wait_state(client, "loading")
    bench.stop.request()
    bench.thread.join(10)  # the loader itself would go on for ever
    assert not bench.thread.is_alive()
    assert bench.errors == []


def test_status_is_answered_while_a_step_runs(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = start()
    runs, may_end, run = ThreadEvent(), ThreadEvent(), bench.runner.run

    def run_until_told(plan: StepPlan) -> StepOutput:
        runs.set()
        assert may_end.wait(10)
        return run(plan)

    monkeypatch.setattr(bench.runner, "run", run_until_told)
    with bench.client() as client:
        wait_state(client, "ready")
        ask(client, generate("r", max_tokens=1))
        assert runs.wait(10)
        ask(client, EngineStatusRequest())
        assert hear(client, EngineStatus).state == "ready"
        may_end.set()
        assert finish(client, "r") == ([2], "length")


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
        refused = hear(client, RequestFailed)
        assert refused.code == "unavailable"
        assert refused.message == failed.message == EXPERTS_AWAY
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
