from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from trimaran.errors import PeerError
from trimaran.wire import Generate, RequestFailed, SamplingParams, TokenBatch
from trimaran_attn.engine import Engine, Event
from trimaran_attn.pages import PageAllocator
from trimaran_attn.runner import StepOutput
from trimaran_attn.scheduler import Limits, Scheduler, StepPlan

VOCAB = 20
BROKEN = 13


class CountingRunner:
    """The token after n is n + 1; after `BROKEN` the logits are no numbers."""

    def __init__(self) -> None:
        self.away = False

    def run(self, plan: StepPlan) -> StepOutput:
        if self.away:
            raise PeerError("no expert service")
        rows = []
        for chunk in plan.chunks:
            if chunk.samples:
                (last,) = chunk.request.tokens(chunk.request.n_tokens - 1, chunk.request.n_tokens)
                row = torch.zeros(VOCAB)
                row[(last + 1) % VOCAB] = math.nan if last == BROKEN else 10.0
                rows.append(row)
        return StepOutput(torch.stack(rows) if rows else torch.zeros(0, VOCAB))


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def runner() -> CountingRunner:
    return CountingRunner()


@pytest.fixture
def engine(clock: Clock, runner: CountingRunner) -> Engine:
    limits = Limits(context_length=64, max_running=4, max_waiting=4, max_step_tokens=8, page_size=4)
    return Engine(Scheduler(limits, PageAllocator(64)), runner, VOCAB, clock=clock)


def ask(name: str, prompt: list[int], **fields: object) -> Generate:
    sampling = {key: fields.pop(key) for key in tuple(fields) if key in SamplingParams.__struct_fields__}
    params = SamplingParams(**{"temperature": 0.0, **sampling})  # type: ignore[arg-type]
    return Generate(request_id=name, prompt_ids=prompt, sampling=params, **fields)  # type: ignore[arg-type]


def run(engine: Engine) -> list[Event]:
    events = []
    while engine.has_work:
        events += engine.step()
    return events


def tokens(events: list[Event], name: str) -> list[int]:
    batches = [e for e in events if isinstance(e, TokenBatch) and e.request_id == name]
    return [token for batch in batches for token in batch.ids]


def test_requests_are_continued_side_by_side(engine: Engine) -> None:
    assert engine.submit(ask("a", [1, 2, 3], max_tokens=3)) is None
    assert engine.submit(ask("b", list(range(11)), stop_ids=(12,))) is None
    events = run(engine)
    assert tokens(events, "a") == [4, 5, 6]
    assert tokens(events, "b") == [11, 12]
    last = {e.request_id: e for e in events if isinstance(e, TokenBatch) and e.finish_reason}
    assert {name: e.finish_reason for name, e in last.items()} == {"a": "length", "b": "stop"}
    usage = last["b"].usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.generated_tokens) == (11, 2)


def test_before_run_is_called_once_in_each_step_that_computes(engine: Engine, runner: CountingRunner) -> None:
    calls: list[str] = []
    engine.step(lambda: calls.append("idle"))
    engine.submit(ask("a", [1], max_tokens=2))
    engine.step(lambda: calls.append("first"))
    runner.away = True
    with pytest.raises(PeerError):
        engine.step(lambda: calls.append("broken"))
    assert calls == ["first", "broken"]


def test_ignore_eos_goes_on_to_max_tokens(engine: Engine) -> None:
    engine.submit(ask("a", [1], stop_ids=(3,), ignore_eos=True, max_tokens=5))
    assert tokens(run(engine), "a") == [2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("message", "code", "param"),
    [
        (ask("a", list(range(19)) * 4), "context_length_exceeded", "prompt"),
        (ask("a", []), "invalid_request", "prompt"),
        (ask("a", [VOCAB]), "invalid_request", "prompt_ids"),
        (ask("a", [-1]), "invalid_request", "prompt_ids"),
        (ask("a", [1], stop_ids=(99,)), "invalid_request", "stop_ids"),
        (ask("a", [1], top_p=0.0), "invalid_request", "top_p"),
        (ask("a", [1], deadline=-1.0), "invalid_request", "deadline"),
        (ask("a", [1], deadline=math.nan), "invalid_request", "deadline"),
    ],
)
def test_bad_requests_are_refused_by_field(engine: Engine, message: Generate, code: str, param: str) -> None:
    failed = engine.submit(message)
    assert failed is not None
    assert (failed.request_id, failed.code, failed.param) == ("a", code, param)
    assert not engine.has_work


def test_the_overflow_is_refused_and_the_rest_answered(engine: Engine) -> None:
    refusals = [engine.submit(ask(str(i), [1], max_tokens=2)) for i in range(10)]
    assert [refusal.code for refusal in refusals if refusal] == ["overloaded"] * 2
    assert len({e.request_id for e in run(engine)}) == 8


def test_abort_and_deadline_end_with_usage(engine: Engine, clock: Clock) -> None:
    engine.submit(ask("a", [1]))
    engine.submit(ask("late", [1], deadline=5.0))
    engine.step()
    ended = engine.abort("a")
    assert isinstance(ended, TokenBatch)
    assert (ended.finish_reason, ended.ids) == ("abort", [])
    assert engine.abort("a") is None
    clock.now += 5.0
    (late,) = engine.step()
    assert isinstance(late, TokenBatch)
    assert late.finish_reason == "deadline"
    assert late.usage is not None
    assert late.usage.generated_tokens == 1
    assert not engine.has_work


def test_logits_that_are_no_numbers_fail_their_request_only(engine: Engine) -> None:
    engine.submit(ask("bad", [BROKEN - 1]))
    engine.submit(ask("good", [1], max_tokens=6))
    events = run(engine)
    failures = [e for e in events if isinstance(e, RequestFailed)]
    assert [(e.request_id, e.code) for e in failures] == [("bad", "internal")]
    counters = engine.stats().counters
    assert counters['request_failure_total{reason="internal"}'] == 1
    assert 'request_success_total{finished_reason="internal"}' not in counters
    assert tokens(events, "bad") == [BROKEN]
    assert tokens(events, "good") == [2, 3, 4, 5, 6, 7]
    assert engine.scheduler.pages.n_free == 64


def test_lost_experts_fail_all_requests_and_free_their_pages(engine: Engine, runner: CountingRunner) -> None:
    engine.submit(ask("a", [1]))
    engine.step()
    runner.away = True
    with pytest.raises(PeerError):
        engine.step()
    failures = engine.fail_all("unavailable", "experts are away")
    assert [(e.request_id, e.code) for e in failures if isinstance(e, RequestFailed)] == [
        ("a", "unavailable")
    ]
    assert engine.scheduler.pages.n_free == 64
    runner.away = False
    engine.submit(ask("b", [1], max_tokens=1))
    assert tokens(run(engine), "b") == [2]


def test_a_draw_that_fails_ends_its_request_only(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trimaran_attn.engine.check_sampling", lambda *_: None)
    engine.submit(ask("bad", [1], logit_bias={5: math.inf}))
    engine.submit(ask("good", [1], max_tokens=3))
    events = run(engine)
    failures = [(e.request_id, e.code) for e in events if isinstance(e, RequestFailed)]
    assert failures == [("bad", "internal")]
    assert tokens(events, "good") == [2, 3, 4]
    assert engine.scheduler.pages.n_free == 64


@pytest.mark.parametrize("recovers", [True, False])
def test_what_a_broken_step_had_to_say_is_said_later(
    engine: Engine, runner: CountingRunner, clock: Clock, recovers: bool
) -> None:
    engine.submit(ask("late", [1], deadline=5.0))
    engine.submit(ask("other", [1], max_tokens=1))
    clock.now += 5.0
    runner.away = True
    with pytest.raises(PeerError):
        engine.step()
    runner.away = False
    events = engine.step() if recovers else engine.fail_all("unavailable", "experts are away")
    assert [event.request_id for event in events] == ["late", "other"]
    assert isinstance(events[0], TokenBatch)
    assert events[0].finish_reason == "deadline"
    assert engine.step() == []


def test_stats_have_the_exported_names(engine: Engine) -> None:
    engine.submit(ask("a", [1, 2], max_tokens=3))
    run(engine)
    engine.submit(ask("b", [1, 2, 3]))
    engine.step()
    stats = engine.stats()
    assert stats.counters["prompt_tokens_total"] == 5
    assert stats.counters["generation_tokens_total"] == 4
    assert stats.counters['request_success_total{finished_reason="length"}'] == 1
    assert stats.gauges["num_requests_running"] == 1
    assert stats.gauges["kv_cache_usage_perc"] == pytest.approx(1 / 64)
    assert len(stats.observations["time_to_first_token_seconds"]) == 2
    assert len(stats.observations["inter_token_latency_seconds"]) == 2
    assert stats.observations["request_generation_tokens"] == [3]
    assert engine.stats().observations == {}


def test_logprobs_travel_with_their_tokens(engine: Engine) -> None:
    engine.submit(ask("a", [1], max_tokens=1, logprobs=2))
    (batch,) = run(engine)
    assert isinstance(batch, TokenBatch)
    assert batch.logprobs is not None
    assert batch.logprobs[0].top[0][0] == 2


def test_what_was_to_be_closed_is_closed_though_the_caretaker_fails(runner: CountingRunner) -> None:
    class Failing:
        tally = None

        def close(self) -> None:
            raise OSError("disk full")

    closed: list[str] = []
    limits = Limits(context_length=64, max_running=4, max_waiting=4, max_step_tokens=8, page_size=4)
    scheduler = Scheduler(limits, PageAllocator(64))
    caretaker: Any = Failing()
    engine = Engine(scheduler, runner, VOCAB, caretaker=caretaker, on_close=lambda: closed.append("streamer"))
    with pytest.raises(OSError, match="disk full"):
        engine.close()
    assert closed == ["streamer"]
