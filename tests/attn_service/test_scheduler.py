from __future__ import annotations

from collections import Counter
from collections.abc import Collection

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trimaran.errors import OverloadedError, RequestError
from trimaran.wire import SamplingParams
from trimaran_attn.pages import PageAllocator
from trimaran_attn.request import Request, State
from trimaran_attn.scheduler import Limits, Scheduler, StepPlan

PAGE = 4
EOS = 7


def make_limits(**changes: int) -> Limits:
    values = {
        "context_length": 32,
        "max_running": 4,
        "max_waiting": 8,
        "max_step_tokens": 8,
        "page_size": PAGE,
    }
    return Limits(**{**values, **changes})


def make_scheduler(n_pages: int = 32, **changes: int) -> Scheduler:
    return Scheduler(make_limits(**changes), PageAllocator(n_pages))


def make_request(
    name: str, n_prompt: int = 4, max_tokens: int = 4, first: int = 0, **fields: object
) -> Request:
    return Request(
        request_id=name,
        prompt_ids=list(range(first, first + n_prompt)),
        sampling=SamplingParams(),
        max_tokens=max_tokens,
        **fields,  # type: ignore[arg-type]
    )


def run_step(scheduler: Scheduler, now: float = 0.0, token: int = 1, held: Collection[str] = ()) -> StepPlan:
    plan = scheduler.schedule(now, held)
    drawn = {chunk.request.request_id: token for chunk in plan.chunks if chunk.samples}
    scheduler.complete(plan, drawn, now)
    return plan


def lengths(plan: StepPlan) -> dict[str, int]:
    return {chunk.request.request_id: chunk.length for chunk in plan.chunks}


def check_books(scheduler: Scheduler) -> None:
    """Each page is held by exactly the requests that list it, and the rest is free."""
    held = Counter(page for request in scheduler.requests() for page in request.pages)
    assert scheduler.pages.n_free == scheduler.pages.n_pages - len(held)
    assert all(scheduler.pages.references(page) == held[page] for page in range(scheduler.pages.n_pages))
    for request in scheduler.running:
        assert len(request.pages) == len(set(request.pages))
        assert len(request.pages) * PAGE >= request.n_computed


def test_a_long_prompt_is_cut_and_streams_go_on_beside_it() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request("stream", 3))
    run_step(scheduler)
    scheduler.add(make_request("prompt", 20))
    assert [lengths(run_step(scheduler)) for _ in range(3)] == [
        {"stream": 1, "prompt": 7},
        {"stream": 1, "prompt": 7},
        {"stream": 1, "prompt": 6},
    ]


def test_no_more_run_than_a_step_has_tokens_for() -> None:
    """Even while one of them takes no token, since later it may again be due one."""
    scheduler = make_scheduler(max_running=4, max_step_tokens=2)
    for name in "abc":
        scheduler.add(make_request(name, 1))
    assert lengths(run_step(scheduler, held={"a"})) == {"b": 1}
    assert lengths(run_step(scheduler)) == {"a": 1, "b": 1}


def test_a_request_waits_until_its_first_token_has_room_too() -> None:
    scheduler = make_scheduler(n_pages=8, max_step_tokens=64)
    scheduler.add(make_request("long", 7 * PAGE - 1))
    scheduler.add(make_request("page", PAGE, first=100))
    assert lengths(run_step(scheduler)) == {"long": 7 * PAGE - 1}
    assert scheduler.pages.n_free == 1


def test_a_prompt_alone_gets_longer_chunks_until_there_is_a_stream() -> None:
    scheduler = make_scheduler(lone_step_tokens=12)
    scheduler.add(make_request("first", 21))
    scheduler.add(make_request("second", 29, first=50))
    assert [lengths(run_step(scheduler)) for _ in range(4)] == [
        {"first": 12},
        {"first": 9},
        {"first": 1, "second": 7},
        {"first": 1, "second": 7},
    ]
    scheduler.end("first", "abort")
    assert lengths(run_step(scheduler)) == {"second": 12}


def test_what_a_short_prompt_leaves_of_the_budget_is_not_more_beside_a_larger_one() -> None:
    scheduler = make_scheduler(lone_step_tokens=12)
    scheduler.add(make_request("short", 3))
    scheduler.add(make_request("long", 20, first=50, arrived_at=1.0))
    assert lengths(run_step(scheduler)) == {"short": 3, "long": 5}


def test_a_request_ends_at_a_stop_id_and_at_max_tokens() -> None:
    scheduler = make_scheduler()
    stopped = make_request("stopped", stop_ids=frozenset({EOS}))
    long = make_request("long", max_tokens=2)
    scheduler.add(stopped)
    scheduler.add(long)
    run_step(scheduler, token=EOS)
    assert (stopped.finish_reason, stopped.output_ids) == ("stop", [EOS])
    run_step(scheduler)
    assert (long.finish_reason, long.output_ids) == ("length", [EOS, 1])
    assert not scheduler.has_work
    assert scheduler.pages.n_free == 32


def test_max_tokens_is_clipped_to_the_context() -> None:
    scheduler = make_scheduler()
    request = make_request("r", n_prompt=30, max_tokens=1000)
    scheduler.add(request)
    while scheduler.has_work:
        run_step(scheduler)
    assert request.finish_reason == "length"
    assert request.n_tokens == 32


def test_a_prompt_over_the_context_is_refused_before_any_page_is_taken() -> None:
    scheduler = make_scheduler()
    with pytest.raises(RequestError, match=r"33 tokens.*32") as error:
        scheduler.add(make_request("r", n_prompt=33))
    assert error.value.code == "context_length_exceeded"
    with pytest.raises(RequestError, match="no tokens"):
        scheduler.add(make_request("empty", n_prompt=0))
    assert not scheduler.has_work
    assert scheduler.pages.n_free == 32


def test_an_id_in_use_is_refused() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request("same"))
    with pytest.raises(RequestError, match="'same' is in use"):
        scheduler.add(make_request("same"))


def test_the_waiting_queue_is_bounded() -> None:
    scheduler = make_scheduler(max_running=1, max_waiting=2)
    for name in "abc":  # one may run at once, two may wait
        scheduler.add(make_request(name))
    with pytest.raises(OverloadedError, match="no more than 2"):
        scheduler.add(make_request("d"))


def test_urgent_requests_overtake_but_not_for_ever() -> None:
    scheduler = make_scheduler(max_running=1)
    for name, priority, arrived in (("late", 0, 1.0), ("urgent", -5, 2.0), ("patient", 1, -20.0)):
        scheduler.add(make_request(name, max_tokens=1, priority=priority, arrived_at=arrived))
    order = [next(iter(lengths(run_step(scheduler)))) for _ in range(3)]
    assert order == ["urgent", "patient", "late"]


def test_an_urgent_request_overtakes_a_prompt_that_has_begun() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request("long", n_prompt=20, max_tokens=1))
    assert lengths(run_step(scheduler)) == {"long": 8}
    scheduler.add(make_request("later", n_prompt=4, first=50, arrived_at=1.0))
    scheduler.add(make_request("urgent", n_prompt=5, first=90, max_tokens=1, priority=-1, arrived_at=2.0))
    assert lengths(run_step(scheduler)) == {"urgent": 5, "long": 3}
    assert lengths(run_step(scheduler)) == {"long": 8}
    assert lengths(run_step(scheduler)) == {"long": 1, "later": 4}
    check_books(scheduler)


def test_an_urgent_request_takes_the_place_of_the_last_in_rank() -> None:
    scheduler = make_scheduler(max_running=2)
    first, last = make_request("first", max_tokens=9), make_request("last", first=50, max_tokens=9)
    for request in (first, last):
        scheduler.add(request)
    run_step(scheduler, token=7)
    urgent = make_request("urgent", first=90, max_tokens=2, priority=-1, arrived_at=1.0)
    scheduler.add(urgent)
    assert lengths(run_step(scheduler, token=7)) == {"first": 1, "urgent": 4}
    assert last.state is State.WAITING
    check_books(scheduler)
    while scheduler.has_work:
        run_step(scheduler, token=7)
    assert (first.output_ids, last.output_ids, urgent.output_ids) == ([7] * 9, [7] * 9, [7] * 2)
    assert scheduler.counters.preemptions == 1


def test_an_urgent_request_takes_pages_only_if_they_are_enough() -> None:
    """Of 8 pages, `front` has 2 and `behind` 4; 7 are more than `behind` gives back, 6 are not."""
    scheduler = make_scheduler(n_pages=8)
    scheduler.add(make_request("front", n_prompt=7, max_tokens=20, priority=-9))
    scheduler.add(make_request("behind", n_prompt=14, first=50, max_tokens=2))
    run_step(scheduler)
    run_step(scheduler)
    scheduler.add(make_request("large", n_prompt=24, first=90, priority=-2))
    run_step(scheduler)
    assert [r.request_id for r in scheduler.running] == ["front", "behind"]
    scheduler.end("large", "abort")
    scheduler.add(make_request("fits", n_prompt=18, first=120, priority=-1))
    run_step(scheduler)
    assert [r.request_id for r in scheduler.running] == ["front", "fits"]
    check_books(scheduler)


def test_pages_that_an_urgent_request_shares_with_those_behind_it_are_no_gain() -> None:
    """Of 8 pages `front` has 2 and `behind` 6; `urgent` would share 5 of these, get 1, and need 2."""
    scheduler = make_scheduler(n_pages=8, max_step_tokens=24)
    scheduler.add(make_request("front", n_prompt=5, max_tokens=3, first=50, priority=-9))
    scheduler.add(make_request("behind", n_prompt=22, max_tokens=2))
    run_step(scheduler)
    run_step(scheduler)
    scheduler.add(make_request("urgent", n_prompt=25, max_tokens=2, priority=-1))
    assert scheduler.pages.n_free == 0
    assert lengths(scheduler.schedule(0.0)) == {"front": 1, "behind": 1}
    assert scheduler.counters.preemptions == 0


def test_deadlines_end_running_and_waiting_requests() -> None:
    scheduler = make_scheduler(max_running=1)
    for name in ("runs", "waits"):
        scheduler.add(make_request(name, deadline_at=5.0))
    run_step(scheduler)
    assert scheduler.expire(4.9) == []
    late = scheduler.expire(5.0)
    assert {(r.request_id, r.finish_reason) for r in late} == {("runs", "deadline"), ("waits", "deadline")}
    assert scheduler.pages.n_free == 32


def test_when_pages_run_out_the_last_in_rank_is_computed_again_later() -> None:
    scheduler = make_scheduler(n_pages=8, max_step_tokens=64)
    first = make_request("first", n_prompt=12, max_tokens=16, arrived_at=0.0)
    second = make_request("second", n_prompt=12, max_tokens=16, first=50, arrived_at=1.0)
    scheduler.add(first)
    scheduler.add(second)
    for step in range(1, 100):
        run_step(scheduler, token=step)
        check_books(scheduler)
        if not scheduler.has_work:
            break
    assert scheduler.counters.preemptions >= 1
    assert first.last_token_at is not None
    assert (len(first.output_ids), len(second.output_ids)) == (16, 16)
    assert first.output_ids == list(range(1, 17))  # the first in rank never waited


def test_abort_frees_the_pages_at_once_and_unknown_ids_are_ignored() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request("r", 9))
    run_step(scheduler)
    assert scheduler.pages.n_free < 32
    request = scheduler.end("r", "abort")
    assert request is not None
    assert (request.state, request.finish_reason) == (State.FINISHED, "abort")
    assert scheduler.pages.n_free == 32
    assert scheduler.end("r", "abort") is None


ARRIVALS = st.lists(
    st.tuples(
        st.integers(0, 40),  # step of arrival
        st.integers(1, 31),  # prompt tokens
        st.integers(1, 40),  # max tokens
        st.integers(-3, 3),  # priority
        st.one_of(st.none(), st.integers(0, 30)),  # steps until it is aborted
        st.one_of(st.none(), st.integers(0, 60)),  # steps until its deadline
        st.integers(0, 30),  # steps until its grammar is compiled
    ),
    max_size=30,
)


@settings(max_examples=150, deadline=None)
@given(
    arrivals=ARRIVALS,
    n_pages=st.integers(8, 24),
    max_running=st.integers(1, 6),
    max_step_tokens=st.integers(1, 24),
    max_waiting=st.integers(0, 12),
    lone_step_tokens=st.integers(0, 40),
)
def test_books_balance_and_everybody_is_answered(
    arrivals: list[tuple[int, int, int, int, int | None, int | None, int]],
    n_pages: int,
    max_running: int,
    max_step_tokens: int,
    max_waiting: int,
    lone_step_tokens: int,
) -> None:
    scheduler = make_scheduler(
        n_pages,
        max_running=max_running,
        max_step_tokens=max_step_tokens,
        max_waiting=max_waiting,
        lone_step_tokens=lone_step_tokens,
    )
    accepted: list[Request] = []
    aborts: dict[str, int] = {}
    held_until: dict[str, int] = {}
    last_step = 41 + sum(32 + 32 for _ in arrivals) * 40
    for step in range(last_step):
        for number, (arrival, n_prompt, max_tokens, priority, abort_after, deadline, compiling) in enumerate(
            arrivals
        ):
            if arrival != step:
                continue
            request = make_request(
                f"{number:02}",
                n_prompt,
                max_tokens,
                priority=priority,
                arrived_at=float(step),
                deadline_at=None if deadline is None else float(step + deadline),
            )
            try:
                scheduler.add(request)
            except OverloadedError:
                assert len(scheduler.waiting) >= max_waiting
                continue
            accepted.append(request)
            held_until[request.request_id] = step + compiling
            if abort_after is not None:
                aborts[request.request_id] = step + abort_after
        for name, when in aborts.items():
            if when == step:
                scheduler.end(name, "abort")
        scheduler.expire(float(step))
        streams = [r for r in scheduler.running if r.is_decoding]
        held = {name for name, end in held_until.items() if step < end}
        plan = run_step(scheduler, float(step), token=step, held=held)
        lone = len(plan.chunks) == 1
        assert plan.n_tokens <= (max(max_step_tokens, lone_step_tokens) if lone else max_step_tokens)
        assert not any(chunk.samples for chunk in plan.chunks if chunk.request.request_id in held)
        assert len({chunk.request.request_id for chunk in plan.chunks}) == len(plan.chunks) <= max_running
        served = {chunk.request.request_id for chunk in plan.chunks}
        assert all(r.request_id in served or r.state is State.WAITING for r in streams)
        stuck = {r.request_id for r in scheduler.running} & held
        assert plan.chunks or not scheduler.has_work or stuck, "a step with work to do must do some"
        check_books(scheduler)
        if step > 40 and not scheduler.has_work:
            break
    assert not scheduler.has_work
    assert scheduler.pages.n_free == n_pages
    for request in accepted:
        assert request.state is State.FINISHED
        if request.finish_reason == "length":
            assert len(request.output_ids) == request.max_tokens
        else:
            assert request.finish_reason in {"abort", "deadline"}


def test_the_last_token_of_a_held_prompt_waits() -> None:
    scheduler = make_scheduler()
    held = make_request("held", n_prompt=8)
    short = make_request("short", n_prompt=1, first=20)
    other = make_request("other", n_prompt=4, first=40, max_tokens=9)
    for request in (held, short, other):
        scheduler.add(request)
    for expected in ({"held": 7, "other": 1}, {"other": 3}, {"other": 1}):
        plan = scheduler.schedule(0.0, {"held", "short"})
        assert lengths(plan) == expected
        scheduler.complete(plan, {"other": 1}, 0.0)
        check_books(scheduler)
    assert (held.n_computed, held.output_ids, short.output_ids) == (7, [], [])
    assert lengths(run_step(scheduler)) == {"held": 1, "short": 1, "other": 1}
    assert (held.output_ids, short.output_ids) == ([1], [1])
