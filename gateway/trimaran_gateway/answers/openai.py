"""What OpenAI's chat and plain completions have in common."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from typing import Any

from trimaran_gateway.output.events import TokenUsage


@dataclass(frozen=True)
class AnswerHead:
    """The fields that every chunk of an answer repeats."""

    prefix: str
    model: str
    fingerprint: str
    answer_id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    def fields(self, kind: str) -> dict[str, Any]:
        """The head of an object of `kind`."""
        return {
            "id": f"{self.prefix}-{self.answer_id}",
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }


def usage_body(usage: TokenUsage) -> dict[str, Any]:
    """OpenAI's `usage`."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }
