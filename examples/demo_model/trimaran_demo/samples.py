"""What one training example is, and which examples are held out.

Every task writes a deterministic chain of thought: the prompt fixes the whole completion. So "the model's
argmax equals the reference at every position" is the same as "greedy decoding gives the right answer".
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

HELD_OUT_SHARE = 16  # one key in sixteen is never trained on

Message = dict[str, Any]


@dataclass(frozen=True)
class Sample:
    """A conversation and the completion the model must write.

    `reasoning` is what stands between `<think>` and `</think>`; None means that the prompt opens no
    thinking (the turn after a tool's output, as in DeepSeek-R1's template). `key` names what is asked
    (an arithmetic problem, a pass key): the split into training and held-out hashes it, so that a
    held-out problem is unseen in every phrasing. An empty key is never held out.
    """

    task: str
    messages: list[Message]
    answer: str
    reasoning: str | None
    key: str = ""

    @property
    def completion(self) -> str:
        """The text after the generation prompt, without the end-of-sentence token."""
        return self.answer if self.reasoning is None else f"{self.reasoning}\n</think>\n\n{self.answer}"


def ask(task: str, question: str, reasoning: str, answer: str, key: str = "") -> Sample:
    """A sample of one user turn."""
    return Sample(task, [{"role": "user", "content": question}], answer, reasoning, key)


def is_held_out(key: str) -> bool:
    """Whether a problem belongs to the held-out split; stable over machines and Python versions."""
    if not key:
        return False
    return hashlib.blake2b(key.encode(), digest_size=4).digest()[0] % HELD_OUT_SHARE == 0
