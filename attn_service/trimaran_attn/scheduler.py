"""Continuous batching: which tokens of which requests the next step computes. Pure Python, no tensors.

A step has a token budget. Running streams come first, one token each, so that a long prompt never stalls
them; what is left of the budget goes to prompts, cut in chunks. While there are no streams, a chunk may be
longer, since long ones cost less a token. A request takes all pages of its prompt when it is admitted, cached
ones and new ones, then one page at a time; when none is left, the request of the highest rank gives its pages
up and is computed again later. So it does for an urgent one that waits for room, too. The cache holds at
least one whole context, so the first in rank always goes on.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter, deque
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from operator import attrgetter

from trimaran.errors import OverloadedError, RequestError

from trimaran_attn.draws import Draw
from trimaran_attn.pages import PageAllocator, pages_for
from trimaran_attn.prefix_cache import PrefixCache
from trimaran_attn.request import Request, State

REASONS = ("stop", "length", "abort", "deadline", "invalid_request", "unavailable", "internal")
"""Why requests end; the last three are failures."""


@dataclass(frozen=True)
class Limits:
    """Bounds of the scheduler, all in requests or tokens.

    `page_size` is tokens per page. `lone_step_tokens` bounds a step that is one chunk of a prompt, if it is
    more than `max_step_tokens`.
    """

    context_length: int
    max_running: int
    max_waiting: int
    max_step_tokens: int
    page_size: int
    lone_step_tokens: int = 0


@dataclass(frozen=True)
class Chunk:
    """Compute `length` tokens of a request from position `start` on; draw the next token if `samples`."""

    request: Request
    start: int
    length: int

    @property
    def samples(self) -> bool:
        """Whether the chunk reaches the last known token, so that the next one can be drawn."""
        return self.start + self.length == self.request.n_tokens

    @property
    def scored(self) -> range:
        """Positions of the chunk after which the prompt's next token is to be scored."""
        return self.request.unscored(self.start, self.start + self.length)


@dataclass(frozen=True)
class StepPlan:
    """What one step computes; at most `Limits.max_step_tokens` tokens, or one chunk of `lone_step_tokens`.

    Attributes:
        chunks: of which requests.
        draws: by request id, how its next token is drawn; whoever computes the logits may do so.
    """

    chunks: tuple[Chunk, ...] = ()
    draws: Mapping[str, Draw] = field(default_factory=dict)

    @property
    def n_tokens(self) -> int:
        """Tokens of all chunks."""
        return sum(chunk.length for chunk in self.chunks)


@dataclass
class SchedulerCounters:
    """Totals since the start.

    `cached_tokens` belong to the prompts in `prompt_tokens`, which had a first token drawn; `queried_tokens`
    and `hit_tokens` to all prompts that were ever admitted.
    """

    preemptions: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    queried_tokens: int = 0
    hit_tokens: int = 0
    generated_tokens: int = 0
    finished: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REASONS, 0))


class Scheduler:
    """Holds all unfinished requests and plans steps over them.

    Args:
        limits: the bounds it keeps.
        pages: the pages it hands out; at least one whole context of them.
        prefix_cache: whether requests with a common beginning share its pages.
    """

    def __init__(self, limits: Limits, pages: PageAllocator, *, prefix_cache: bool = True) -> None:
        assert pages.n_pages >= pages_for(limits.context_length, limits.page_size)
        self.limits = limits
        self.pages = pages
        self._prefixes = PrefixCache(pages, limits.page_size, enabled=prefix_cache)
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.counters = SchedulerCounters()
        self._by_id: dict[str, Request] = {}
        # Each running stream is due one token a step, and a prompt at least one beside them.
        self._max_running = min(limits.max_running, limits.max_step_tokens)

    @property
    def has_work(self) -> bool:
        """Whether any request is unfinished."""
        return bool(self._by_id)

    def requests(self) -> Iterator[Request]:
        """All unfinished requests."""
        return iter(tuple(self._by_id.values()))

    def add(self, request: Request) -> None:
        """Queue a request; its `max_tokens` is clipped to what the context leaves.

        Raises:
            RequestError: the prompt leaves no room in the context, or the id is in use.
            OverloadedError: the waiting queue is full.
        """
        self._check(request)
        if len(self.waiting) >= self.limits.max_waiting + self._max_running - len(self.running):
            raise OverloadedError(
                f"{len(self.waiting)} requests wait already, no more than {self.limits.max_waiting} may"
            )
        request.max_tokens = min(request.max_tokens, self.limits.context_length - len(request.prompt_ids))
        self._by_id[request.request_id] = request
        insort(self.waiting, request, key=attrgetter("rank"))

    def end(self, request_id: str, reason: str) -> Request | None:
        """End a request now and free its pages; None if there is no such request (any more)."""
        request = self._by_id.get(request_id)
        if request is not None:
            self._finish(request, reason)
        return request

    def expire(self, now: float) -> list[Request]:
        """End the requests whose deadline has passed."""
        late = [r for r in self.requests() if r.deadline_at is not None and r.deadline_at <= now]
        for request in late:
            self._finish(request, "deadline")
        return late

    def schedule(self, now: float, held: Collection[str] = ()) -> StepPlan:
        """Plan the next step: streams, then chunks of prompts by rank, whether they run or have waited.

        Args:
            now: seconds of the engine's clock.
            held: requests whose first token cannot be drawn yet: the last token of their prompt waits.
        """
        self._make_room()
        chunks = self._schedule_streams()
        budget = self.limits.max_step_tokens - len(chunks)
        prompts = deque(request for request in self.running if not request.is_decoding)
        while budget > 0 and (request := self._next_prompt(prompts, chunks, now)) is not None:
            budget -= self._schedule_prompt(chunks, request, budget, held)
        return StepPlan(tuple(chunks))

    def complete(
        self, plan: StepPlan, drawn: Mapping[str, int], now: float, complete: Collection[str] = ()
    ) -> None:
        """Book a computed step.

        Args:
            plan: the step.
            drawn: tokens by request id, of all requests whose chunk samples and that did not fail meanwhile.
            now: when the step ended.
            complete: requests whose output needs no more tokens, whatever was drawn.
        """
        for chunk in plan.chunks:
            request = chunk.request
            if request.state is State.FINISHED:
                continue
            request.n_scored = max(request.n_scored, chunk.scored.stop)
            samples = chunk.samples
            request.n_computed += chunk.length
            self._prefixes.register(request, chunk.start)
            if samples:
                key = request.request_id
                self._append(request, drawn[key], now, key in complete)

    def _check(self, request: Request) -> None:
        n_prompt, context = len(request.prompt_ids), self.limits.context_length
        if n_prompt >= context:
            raise RequestError(
                f"the prompt has {n_prompt} tokens, but the context holds {context} for prompt and answer",
                code="context_length_exceeded",
                param="prompt",
            )
        if n_prompt == 0:
            raise RequestError("the prompt has no tokens", code="invalid_request", param="prompt")
        if request.request_id in self._by_id:
            raise RequestError(
                f"request id {request.request_id!r} is in use", code="invalid_request", param="request_id"
            )

    def _make_room(self) -> None:
        """Let the first that waits take the place of those behind it in rank, if that is enough."""
        if not self.waiting:
            return
        first = self.waiting[0]
        behind = [request for request in self.running if request.rank > first.rank]
        if not behind:
            return
        cached = self._prefixes.match(first)  # pages that it would share with them are no gain
        held = Counter(page for request in behind for page in request.pages if page not in cached)
        gained = sum(self.pages.references(page) == count for page, count in held.items())
        if self._lacks(first, cached) > gained:
            return
        while not self._fits(first, cached):
            self._preempt(behind.pop())

    def _next_prompt(self, begun: deque[Request], chunks: list[Chunk], now: float) -> Request | None:
        """The first in rank of the prompts that have begun and, if there is room, of those that wait."""
        if begun and not (self.waiting and self.waiting[0].rank < begun[0].rank):
            return begun.popleft()
        admitted = self._admit_next(chunks, now)
        return begun.popleft() if admitted is None and begun else admitted

    def _schedule_streams(self) -> list[Chunk]:
        chunks = []
        for request in tuple(self.running):
            if request.state is not State.RUNNING or not request.is_decoding:
                continue
            if self._grow(request):
                chunks.append(Chunk(request, request.n_computed, 1))
        return chunks

    def _schedule_prompt(
        self, chunks: list[Chunk], request: Request, budget: int, held: Collection[str]
    ) -> int:
        """Cut the next chunk of a prompt; the first of a step without streams may exceed the budget."""
        longest = budget if chunks else max(budget, self.limits.lone_step_tokens)
        length = min(request.n_pending - (request.request_id in held), longest)
        if length:
            chunks.append(Chunk(request, request.n_computed, length))
        return length

    def _grow(self, request: Request) -> bool:
        """Give a stream the page of its next token, from requests behind it if need be; False: it gave up."""
        missing = pages_for(request.n_tokens, self.limits.page_size) - len(request.pages)
        while missing > self.pages.n_free:
            victim = self.running[-1]
            self._preempt(victim)
            if victim is request:
                return False
        request.pages += self.pages.allocate(missing)
        return True

    def _preempt(self, request: Request) -> None:
        self.counters.preemptions += 1
        self._give_back(request)
        self.running.remove(request)
        request.state = State.WAITING
        insort(self.waiting, request, key=attrgetter("rank"))

    def _admit_next(self, chunks: list[Chunk], now: float) -> Request | None:
        """Start the first request that waits; None: there is none, or it has to wait on."""
        if not self.waiting:
            return None
        request = self.waiting[0]
        cached = self._prefixes.match(request)
        if not self._fits(request, cached) or self._is_under_way(request, len(cached), chunks):
            return None
        self._admit(self.waiting.pop(0), cached, now)
        return request

    def _fits(self, request: Request, cached: list[int]) -> bool:
        return len(self.running) < self._max_running and self._lacks(request, cached) <= 0

    def _lacks(self, request: Request, cached: list[int]) -> int:
        """Pages that it needs to begin, and that are not free."""
        # One token more than it has, or its first own token might already drive it out again.
        new = pages_for(request.n_tokens + 1, self.limits.page_size) - len(cached)
        idle = sum(self.pages.references(page) == 0 for page in cached)
        return new + idle - self.pages.n_free

    def _is_under_way(self, request: Request, index: int, chunks: list[Chunk]) -> bool:
        """Whether this step completes the page at `index` for another request; the next one can share it.

        The wait is short: when budget is left for a new request, each chunk before it ends its prompt.
        """
        end = (index + 1) * self.limits.page_size
        return any(
            chunk.start < end <= chunk.start + chunk.length
            and self._prefixes.is_common(request, chunk.request, index)
            for chunk in chunks
        )

    def _admit(self, request: Request, cached: list[int], now: float) -> None:
        # First the cached pages, or the new ones might be taken from them.
        self.pages.share(cached)
        new = pages_for(request.n_tokens, self.limits.page_size) - len(cached)
        request.pages = cached + self.pages.allocate(new)
        request.n_computed = len(cached) * self.limits.page_size
        request.state = State.RUNNING
        if request.admitted_at is None:
            request.admitted_at = now
            request.n_cached = request.n_computed
            self.counters.queried_tokens += request.n_tokens
            self.counters.hit_tokens += request.n_cached
        insort(self.running, request, key=attrgetter("rank"))

    def _append(self, request: Request, token: int, now: float, is_last: bool) -> None:
        if request.first_token_at is None:
            request.first_token_at = now
            self.counters.prompt_tokens += len(request.prompt_ids)
            self.counters.cached_tokens += request.n_cached
        request.last_token_at = now
        request.output_ids.append(token)
        self.counters.generated_tokens += 1
        if is_last or token in request.stop_ids:
            self._finish(request, "stop")
        elif len(request.output_ids) >= request.max_tokens:
            self._finish(request, "length")

    def _finish(self, request: Request, reason: str) -> None:
        queue = self.running if request.state is State.RUNNING else self.waiting
        queue.remove(request)
        if reason == "internal":
            self._prefixes.drop(request)
        self._give_back(request)
        del self._by_id[request.request_id]
        request.state = State.FINISHED
        request.finish_reason = reason
        self.counters.finished[reason] += 1

    def _give_back(self, request: Request) -> None:
        self.pages.release(request.pages)
        request.pages = []
        request.n_computed = 0
