from __future__ import annotations

import threading
import time

import pytest
from trimaran.wire import Generate, SamplingParams, TokenBatch
from trimaran_attn.engine import Engine
from trimaran_attn.pages import PageAllocator
from trimaran_attn.request import Request
from trimaran_attn.runner import StepOutput
from trimaran_attn.scheduler import Chunk, Limits, Scheduler, StepPlan
from trimaran_attn.stopping import StepStop, StepStoppedError


def plan(*names: str, deadline_at: float | None = None, length: int = 2) -> StepPlan:
    requests = [
        Request(
            request_id=name,
            prompt_ids=[1, 2],
            sampling=SamplingParams(),
            max_tokens=1,
            stop_ids=frozenset(),
            priority=0,
            arrived_at=0.0,
            deadline_at=deadline_at,
        )
        for name in names
    ]
    return StepPlan(tuple(Chunk(request, 0, length) for request in requests))


def test_the_abort_of_its_only_request_ends_a_step_and_no_later_one() -> None:
    stop = StepStop()
    with stop.watching(plan("a"), 0.0):
        stop.check()
        stop.announce("a")
        with pytest.raises(StepStoppedError):
            stop.check()
    stop.settle("a")
    with stop.watching(plan("b"), 0.0):
        stop.check()


def test_a_step_that_others_want_too_goes_on() -> None:
    stop = StepStop()
    with stop.watching(plan("a", "b"), 0.0):
        stop.announce("a")
        stop.announce("b")
        stop.check()


def test_an_abort_that_comes_just_before_its_step_ends_it_too() -> None:
    stop = StepStop()
    stop.announce("a")
    with stop.watching(plan("a"), 0.0), pytest.raises(StepStoppedError):
        stop.check()
    stop.settle("a")
    with stop.watching(plan("a"), 0.0):
        stop.check()


def test_a_request_that_is_not_computed_ends_nothing() -> None:
    stop = StepStop()
    with stop.watching(plan("a"), 0.0):
        stop.announce("b")
        stop.check()
    stop.announce("a")
    stop.check()


def test_closed_ends_this_step_and_every_later_one() -> None:
    stop = StepStop()
    with stop.watching(plan("a", "b"), 0.0):
        stop.close()
        with pytest.raises(StepStoppedError):
            stop.check()
    with stop.watching(plan("c"), 0.0), pytest.raises(StepStoppedError):
        stop.check()


def wait_until_stopped(stop: StepStop) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        stop.check()
        time.sleep(0.001)


def test_a_deadline_that_passes_ends_the_step_of_its_only_request_and_no_later_one() -> None:
    stop = StepStop()
    with pytest.raises(StepStoppedError), stop.watching(plan("a", deadline_at=5.01), 5.0):
        wait_until_stopped(stop)
    with stop.watching(plan("b"), 5.01):
        stop.check()


def test_a_deadline_that_has_passed_ends_a_step_too() -> None:
    stop = StepStop()
    with pytest.raises(StepStoppedError), stop.watching(plan("a", deadline_at=4.0), 5.0):
        wait_until_stopped(stop)


@pytest.mark.parametrize(
    "kept",
    [plan("a", "b", deadline_at=5.0), plan("a", deadline_at=5.0, length=1), plan("a", deadline_at=1e12)],
)
def test_no_deadline_ends_a_step_of_several_nor_of_one_token_nor_before_its_time(kept: StepPlan) -> None:
    stop = StepStop()
    before = threading.active_count()
    with stop.watching(kept, 5.0):
        assert threading.active_count() - before == (kept.chunks[0].request.deadline_at == 1e12)
        stop.check()


def test_an_engines_step_ends_at_its_deadline_and_its_client_hears_it() -> None:
    """With a runner that computes for ever, as a chunk of a long prompt seems to."""

    class Endless:
        def __init__(self, stop: StepStop) -> None:
            self._stop = stop

        def run(self, plan: StepPlan) -> StepOutput:
            wait_until_stopped(self._stop)
            raise AssertionError("nobody stopped it")

        def warm_up(self) -> None:
            pass

    stop = StepStop()
    limits = Limits(context_length=64, max_running=2, max_waiting=2, max_step_tokens=16, page_size=16)
    scheduler = Scheduler(limits, PageAllocator(4))
    engine = Engine(scheduler, Endless(stop), 100, stop=stop)
    sampling = SamplingParams(max_tokens=2)
    message = Generate(request_id="late", prompt_ids=[1] * 40, sampling=sampling, deadline=0.2)
    assert engine.submit(message) is None
    with pytest.raises(StepStoppedError):
        engine.step()
    (event,) = engine.step()
    assert isinstance(event, TokenBatch)
    assert (event.finish_reason, event.ids) == ("deadline", [])
    assert not engine.has_work
    assert scheduler.pages.n_free == 4
