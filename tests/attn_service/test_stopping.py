from __future__ import annotations

import pytest
from trimaran.wire import SamplingParams
from trimaran_attn.request import Request
from trimaran_attn.scheduler import Chunk, StepPlan
from trimaran_attn.stopping import StepStop, StepStoppedError


def plan(*names: str) -> StepPlan:
    requests = [
        Request(
            request_id=name,
            prompt_ids=[1, 2],
            sampling=SamplingParams(),
            max_tokens=1,
            stop_ids=frozenset(),
            priority=0,
            arrived_at=0.0,
            deadline_at=None,
        )
        for name in names
    ]
    return StepPlan(tuple(Chunk(request, 0, 2) for request in requests))


def test_the_abort_of_its_only_request_ends_a_step_and_no_later_one() -> None:
    stop = StepStop()
    with stop.watching(plan("a")):
        stop.check()
        stop.announce("a")
        with pytest.raises(StepStoppedError):
            stop.check()
    stop.settle("a")
    with stop.watching(plan("b")):
        stop.check()


def test_a_step_that_others_want_too_goes_on() -> None:
    stop = StepStop()
    with stop.watching(plan("a", "b")):
        stop.announce("a")
        stop.announce("b")
        stop.check()


def test_an_abort_that_comes_just_before_its_step_ends_it_too() -> None:
    stop = StepStop()
    stop.announce("a")
    with stop.watching(plan("a")), pytest.raises(StepStoppedError):
        stop.check()
    stop.settle("a")
    with stop.watching(plan("a")):
        stop.check()


def test_a_request_that_is_not_computed_ends_nothing() -> None:
    stop = StepStop()
    with stop.watching(plan("a")):
        stop.announce("b")
        stop.check()
    stop.announce("a")
    stop.check()


def test_closed_ends_this_step_and_every_later_one() -> None:
    stop = StepStop()
    with stop.watching(plan("a", "b")):
        stop.close()
        with pytest.raises(StepStoppedError):
            stop.check()
    with stop.watching(plan("c")), pytest.raises(StepStoppedError):
        stop.check()
