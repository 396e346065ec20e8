"""One request inside the engine: its tokens, its pages, where it is in its life. No torch here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import islice

from trimaran.wire import SamplingParams, Usage

# A request of priority p is ranked as if it had arrived this much later per level. So urgent requests
# overtake, but none can be overtaken for ever: nobody starves.
SECONDS_PER_PRIORITY = 10.0


class State(Enum):
    """waiting ⇄ running → finished; a running request that must give up its pages waits again."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(eq=False, slots=True)
class Request:
    """A prompt that is being continued. Times are seconds of the engine's monotonic clock.

    Attributes:
        max_tokens: bound of generated tokens; the scheduler clips it to the context.
        stop_ids: drawing one of these ends the request.
        output_ids: tokens drawn so far.
        pages: its pages of the KV cache, in order of position.
        page_keys: names of its first full pages by content, as far as they were needed (see `prefix_cache`).
        n_computed: tokens whose latents lie in those pages.
        n_cached: prompt tokens that lay there already when it was first admitted.
        n_scored: tokens after which the prompt's next one was scored, if its log probabilities are wanted.
    """

    request_id: str
    prompt_ids: Sequence[int]
    sampling: SamplingParams
    max_tokens: int
    stop_ids: frozenset[int] = frozenset()
    priority: int = 0
    arrived_at: float = 0.0
    deadline_at: float | None = None
    state: State = State.WAITING
    output_ids: list[int] = field(default_factory=list)
    pages: list[int] = field(default_factory=list)
    page_keys: list[bytes] = field(default_factory=list)
    n_computed: int = 0
    n_cached: int = 0
    n_scored: int = 0
    finish_reason: str | None = None
    admitted_at: float | None = None
    first_token_at: float | None = None
    last_token_at: float | None = None

    @property
    def rank(self) -> tuple[float, str]:
        """Sort key: lower goes first. It never changes, so the order of two requests never does."""
        return (self.arrived_at + SECONDS_PER_PRIORITY * self.priority, self.request_id)

    @property
    def n_tokens(self) -> int:
        """Tokens known: prompt and output."""
        return len(self.prompt_ids) + len(self.output_ids)

    @property
    def n_pending(self) -> int:
        """Known tokens that are not computed yet."""
        return self.n_tokens - self.n_computed

    @property
    def n_reusable(self) -> int:
        """Tokens that need not be computed if their latents are known: not the last, which gives logits."""
        if self.sampling.prompt_logprobs is None:
            return self.n_tokens - 1
        return min(self.n_tokens - 1, self.n_scored)

    def unscored(self, start: int, stop: int) -> range:
        """Those of the positions `start` … `stop` - 1 whose following prompt token is still to be scored."""
        if self.sampling.prompt_logprobs is None:
            return range(0)
        return range(max(start, self.n_scored), min(stop, len(self.prompt_ids) - 1))

    @property
    def is_decoding(self) -> bool:
        """Only the token drawn last is missing from the cache."""
        return bool(self.output_ids) and self.n_pending == 1

    def tokens(self, start: int, stop: int) -> Iterator[int]:
        """Ids of the known tokens at positions `start` … `stop` - 1."""
        n_prompt = len(self.prompt_ids)
        yield from self.prompt_ids[start : min(stop, n_prompt)]
        yield from islice(self.output_ids, max(start - n_prompt, 0), max(stop - n_prompt, 0))

    def usage(self, now: float) -> Usage:
        """Token counts and times up to now."""
        admitted = now if self.admitted_at is None else self.admitted_at
        first = now if self.first_token_at is None else self.first_token_at
        return Usage(
            prompt_tokens=len(self.prompt_ids),
            generated_tokens=len(self.output_ids),
            cached_tokens=self.n_cached,
            queue_s=admitted - self.arrived_at,
            prefill_s=first - admitted,
            decode_s=now - first,
        )
