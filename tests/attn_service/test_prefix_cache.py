"""Sharing pages between requests, with a cache of symbols in place of latents."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trimaran.wire import SamplingParams
from trimaran_attn.pages import PageAllocator
from trimaran_attn.request import Request, State
from trimaran_attn.scheduler import Limits, Scheduler, StepPlan

PAGE = 4
CONTEXT = 32


class SymbolCache:
    """Stands for the latents: what a token's entry depends on, which is all tokens up to it."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.entries: dict[tuple[int, int], tuple[int, ...]] = {}

    def run(self, plan: StepPlan) -> dict[str, int]:
        """Write, then read as the model does; the token drawn is a function of all tokens before it."""
        writes: Counter[tuple[int, int]] = Counter()
        for chunk in plan.chunks:
            known = tuple(chunk.request.tokens(0, chunk.start + chunk.length))
            for position in range(chunk.start, len(known)):
                slot = (chunk.request.pages[position // PAGE], position % PAGE)
                assert self.scheduler.pages.references(slot[0]) == 1, "a shared page is written"
                writes[slot] += 1
                self.entries[slot] = known[: position + 1]
        assert not writes or max(writes.values()) == 1
        drawn = {}
        for chunk in plan.chunks:
            known = tuple(chunk.request.tokens(0, chunk.start + chunk.length))
            for position in range(len(known)):
                slot = (chunk.request.pages[position // PAGE], position % PAGE)
                assert self.entries[slot] == known[: position + 1], "another prefix's entry is read"
            if chunk.samples:
                drawn[chunk.request.request_id] = next_token(known)
        return drawn


def next_token(known: tuple[int, ...]) -> int:
    return (7 * sum(known) + len(known)) % 3


def make(n_pages: int = 16, *, prefix_cache: bool = True, **changes: int) -> tuple[Scheduler, SymbolCache]:
    values = {
        "context_length": CONTEXT,
        "max_running": 4,
        "max_waiting": 64,
        "max_step_tokens": 64,
        "page_size": PAGE,
    }
    scheduler = Scheduler(Limits(**{**values, **changes}), PageAllocator(n_pages), prefix_cache=prefix_cache)
    return scheduler, SymbolCache(scheduler)


def make_request(name: str, prompt: list[int], max_tokens: int = 1, **fields: object) -> Request:
    return Request(name, prompt, SamplingParams(), max_tokens, **fields)  # type: ignore[arg-type]


def step(scheduler: Scheduler, cache: SymbolCache) -> StepPlan:
    plan = scheduler.schedule(0.0)
    drawn = cache.run(plan)
    check_books(scheduler)
    scheduler.complete(plan, drawn, 0.0)
    check_books(scheduler)
    return plan


def serve(scheduler: Scheduler, cache: SymbolCache, *requests: Request) -> int:
    """Run all to their ends; how many tokens were computed."""
    for request in requests:
        scheduler.add(request)
    n_computed = 0
    while scheduler.has_work:
        n_computed += step(scheduler, cache).n_tokens
    return n_computed


def check_books(scheduler: Scheduler) -> None:
    """A page's references are the requests that list it; what nobody lists can be had."""
    pages = scheduler.pages
    owners = Counter(page for request in scheduler.requests() for page in request.pages)
    assert all(pages.references(page) == owners[page] for page in range(pages.n_pages))
    assert pages.n_free == pages.n_pages - len(owners)


@pytest.mark.parametrize(
    ("prompt", "cached"),
    [
        ([1] * 11, 8),  # whole pages of a longer prompt
        ([1] * 12, 8),  # the whole prompt is known, the last token is computed all the same
        ([1] * 13, 12),
        ([1] * 5 + [2] * 5, 4),  # they part inside a page
        ([2] + [1] * 11, 0),
        ([1] * 4, 0),
    ],
)
def test_a_prompt_starts_after_the_full_pages_it_has_in_common(prompt: list[int], cached: int) -> None:
    scheduler, cache = make()
    serve(scheduler, cache, make_request("first", [1] * 15))
    request = make_request("second", prompt)
    assert serve(scheduler, cache, request) == len(prompt) - cached
    assert request.usage(0.0).cached_tokens == cached
    counters = scheduler.counters
    assert (counters.queried_tokens, counters.hit_tokens) == (15 + len(prompt), cached)
    assert (counters.prompt_tokens, counters.cached_tokens) == (15 + len(prompt), cached)


def test_without_the_option_nothing_is_shared() -> None:
    scheduler, cache = make(prefix_cache=False)
    requests = [make_request(name, [1] * 12, max_tokens=4) for name in "abc"]
    assert serve(scheduler, cache, *requests) == 3 * (12 + 3)
    assert scheduler.counters.hit_tokens == 0


def test_the_next_turn_finds_what_was_generated() -> None:
    scheduler, cache = make()
    first = make_request("first", [5, 6, 7], max_tokens=10)
    serve(scheduler, cache, first)
    second = make_request("second", [*first.tokens(0, first.n_tokens), 9, 9])
    serve(scheduler, cache, second)
    assert second.n_cached == 12  # 13 tokens, but the last one was only drawn


def test_requests_that_come_together_share_one_computation() -> None:
    """As the n answers to one prompt: the others wait one step for the first."""
    scheduler, cache = make()
    requests = [make_request(str(i), [1] * 10 + [i], max_tokens=3) for i in range(3)]
    other = make_request("other", [2] * 9, max_tokens=3)
    for request in (*requests, other):
        scheduler.add(request)
    assert step(scheduler, cache).n_tokens == 11
    assert step(scheduler, cache).n_tokens == 1 + 2 * 3 + 9
    assert len({request.pages[1] for request in requests}) == 1
    assert scheduler.pages.references(requests[0].pages[1]) == 3
    assert len({request.pages[2] for request in requests}) == 3
    serve(scheduler, cache)


def test_streams_that_say_the_same_hold_it_once() -> None:
    scheduler, cache = make()
    twins = [make_request(name, [1], max_tokens=12) for name in "ab"]
    for request in twins:
        scheduler.add(request)
    for _ in range(10):
        step(scheduler, cache)
    assert twins[0].pages[:2] == twins[1].pages[:2]
    assert twins[0].pages[2] != twins[1].pages[2]
    assert scheduler.pages.n_free == 16 - 4
    serve(scheduler, cache)
    assert scheduler.pages.n_free == 16


def test_cached_pages_make_room_the_oldest_and_deepest_first() -> None:
    scheduler, cache = make(8)
    serve(scheduler, cache, make_request("old", [1] * 13))
    serve(scheduler, cache, make_request("new", [2] * 13))
    assert scheduler.pages.n_free == 8
    serve(scheduler, cache, make_request("large", [3] * 15))  # two are free, two of the oldest are taken
    for name, token, cached in (("new again", 2, 12), ("old again", 1, 4)):
        request = make_request(name, [token] * 13)
        serve(scheduler, cache, request)
        assert request.n_cached == cached


def test_a_preempted_request_finds_its_own_pages() -> None:
    computed = {}
    for prefix_cache in (False, True):
        scheduler, cache = make(8, prefix_cache=prefix_cache)
        first = make_request("0", [1] * 14, max_tokens=8)
        second = make_request("1", [2] * 14, max_tokens=8, arrived_at=1.0)
        computed[prefix_cache] = serve(scheduler, cache, first, second)
        assert scheduler.counters.preemptions == 1
        assert (len(first.output_ids), len(second.output_ids)) == (8, 8)
        for request in (first, second):
            known = tuple(request.tokens(0, request.n_tokens))
            assert all(known[n] == next_token(known[:n]) for n in range(14, len(known)))
            assert request.n_cached == 0  # usage speaks of other requests' work
    assert computed[True] <= computed[False] - 2 * PAGE


def test_pages_of_a_request_that_failed_are_not_used_again() -> None:
    scheduler, cache = make()
    for name, reason in (("aborted", "abort"), ("failed", "internal")):
        scheduler.add(make_request(name, [1] * 13, max_tokens=9))
        step(scheduler, cache)
        scheduler.end(name, reason)
        check_books(scheduler)
        following = make_request(f"after {name}", [1] * 13)
        scheduler.add(following)
        step(scheduler, cache)
        assert following.n_cached == (12 if reason == "abort" else 0)
    assert scheduler.pages.n_free == 16


REQUESTS = st.lists(
    st.tuples(
        st.integers(0, 12),  # step of arrival
        st.lists(st.sampled_from("abc"), max_size=4),  # blocks of its prompt, of 6 tokens each
        st.integers(1, 7),  # further tokens of the prompt, equal for equal numbers
        st.integers(1, 12),  # max tokens
        st.sampled_from([None, None, 0, 2, 5]),  # steps until it ends early
        st.sampled_from(["abort", "internal"]),  # how
    ),
    max_size=14,
)


@settings(max_examples=80, deadline=None)
@given(
    requests=REQUESTS,
    n_pages=st.integers(8, 20),
    max_running=st.integers(1, 5),
    max_step_tokens=st.integers(1, 40),
)
def test_no_page_is_leaked_freed_twice_or_written_while_shared(
    requests: list[tuple[int, list[str], int, int, int | None, str]],
    n_pages: int,
    max_running: int,
    max_step_tokens: int,
) -> None:
    scheduler, cache = make(n_pages, max_running=max_running, max_step_tokens=max_step_tokens)
    accepted: list[Request] = []
    for now in range(4000):
        for number, (arrival, blocks, tail, max_tokens, ends_after, reason) in enumerate(requests):
            name = f"{number:02}"
            if arrival == now:
                prompt = [ord(block) - ord("a") for block in blocks for _ in range(6)] + [tail % 3] * tail
                accepted.append(make_request(name, prompt, max_tokens, arrived_at=float(now)))
                scheduler.add(accepted[-1])
            if ends_after is not None and now == arrival + ends_after:
                scheduler.end(name, reason)
                check_books(scheduler)
        plan = step(scheduler, cache)
        assert plan.n_tokens <= max_step_tokens
        assert plan.chunks or not scheduler.has_work, "a step with work to do must do some"
        if now > 12 and not scheduler.has_work:
            break
    assert scheduler.pages.n_free == n_pages
    for request in accepted:
        assert request.state is State.FINISHED
        known, n_prompt = tuple(request.tokens(0, request.n_tokens)), len(request.prompt_ids)
        assert all(known[n] == next_token(known[:n]) for n in range(n_prompt, len(known)))
        assert request.n_cached < n_prompt
