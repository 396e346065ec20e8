"""Prompts of token ids, streamed over HTTP and timed at the client."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from serve_load import post

FIRST_ID = 300
"""Ids below may be control tokens."""


@dataclass(frozen=True)
class Completion:
    """What a client saw: times of time.perf_counter, and what the server counted."""

    asked_at: float
    first_at: float
    ended_at: float
    tokens: int
    cached: int

    @property
    def first_s(self) -> float:
        """Seconds to the first token."""
        return self.first_at - self.asked_at


class Prompts:
    """Prompts that nobody has seen, so that no prefix is cached unless it is meant to be."""

    def __init__(self, vocab_size: int, seed: int) -> None:
        self._ids = range(FIRST_ID, vocab_size - FIRST_ID)
        self._random = random.Random(seed)

    def fresh(self, length: int) -> list[int]:
        """`length` random ids."""
        return self._random.choices(self._ids, k=length)


def complete(url: str, prompts: Sequence[Sequence[int]], tokens: int) -> list[Completion]:
    """Continue all prompts at once by `tokens` tokens each, greedily."""

    async def gather() -> list[Completion]:
        return await asyncio.gather(*(_complete(url, prompt, tokens) for prompt in prompts))

    return asyncio.run(gather())


async def _complete(url: str, prompt: Sequence[int], tokens: int) -> Completion:
    body = {
        "prompt": prompt,
        "temperature": 0,
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }
    asked_at = time.perf_counter()
    first_at, usage = 0.0, dict[str, Any]()
    async for events in post(url, "/v1/completions", body):
        for event in events:
            if "error" in event:
                raise SystemExit(f"a request failed: {event['error']['message']}")
            usage = event.get("usage") or usage
            if usage.get("completion_tokens"):
                first_at = first_at or time.perf_counter()
    if usage.get("completion_tokens") != tokens:
        raise SystemExit(f"{tokens} tokens were asked, the server counts {usage.get('completion_tokens')}")
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    return Completion(asked_at, first_at, time.perf_counter(), tokens, cached)
