"""What a generation yields, whatever the client's dialect."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length", "tool_calls"]
TextKind = Literal["content", "reasoning"]


@dataclass(frozen=True)
class TokenEntry:
    """A token with its natural-log probability and its alternatives (id, log probability)."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class TextDelta:
    """More text of the answer or of the reasoning. `entries` are there when logprobs were asked for."""

    kind: TextKind
    text: str
    entries: tuple[TokenEntry, ...] = ()


@dataclass(frozen=True)
class ToolCallStart:
    """The model begins its call number `index`."""

    index: int
    call_id: str
    name: str


@dataclass(frozen=True)
class ToolCallDelta:
    """More of the arguments' JSON text of call number `index`."""

    index: int
    text: str


@dataclass(frozen=True)
class TokenUsage:
    """What a request cost, in tokens, and where its time went, in seconds."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    queue_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0

    def __add__(self, other: TokenUsage) -> TokenUsage:
        """Sum of two answers to one prompt: the prompt counts once, the waits do not add up."""
        return TokenUsage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            cached_tokens=max(self.cached_tokens, other.cached_tokens),
            reasoning_tokens=self.reasoning_tokens + other.reasoning_tokens,
            queue_s=max(self.queue_s, other.queue_s),
            prefill_s=max(self.prefill_s, other.prefill_s),
            decode_s=max(self.decode_s, other.decode_s),
        )


@dataclass(frozen=True)
class Progress:
    """A batch of the engine was taken in: its ids, and the usage so far.

    `prompt_entries` are the next of the prompt's tokens, from its second one on, if their log probabilities
    were asked for; the last of them come before any generated text.
    """

    usage: TokenUsage
    ids: tuple[int, ...] = ()
    prompt_entries: tuple[TokenEntry, ...] = ()


@dataclass(frozen=True)
class Finished:
    """The end of an answer. `stop_sequence` is the client's stop string that ended it, if one did."""

    reason: FinishReason
    usage: TokenUsage
    stop_sequence: str | None = None


Parsed = TextDelta | ToolCallStart | ToolCallDelta
Event = Parsed | Progress | Finished
