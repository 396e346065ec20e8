"""Greedy decoding of the held-out set, and the file that other tests ask it from."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import torch
from tokenizers import Tokenizer

from .model import DemoModel
from .samples import Sample
from .tokenizer import encode_sample

MAX_NEW_TOKENS = 220  # the longest completion, a product of two-digit numbers, takes about 140
LEAST = {"arithmetic": 0.9, "passkey": 0.9}
"""Shares of exact answers that the project's tests ask of the bundled file."""


def missed(scored: Mapping[str, float]) -> str:
    """What of `LEAST` a model does not reach, as a sentence; empty if it reaches all."""
    low = {task: scored.get(task, 0.0) for task, least in LEAST.items() if scored.get(task, 0.0) < least}
    return ", ".join(f"{task} is {score:.0%} right, not {LEAST[task]:.0%}" for task, score in low.items())


@torch.no_grad()
def generate(
    model: DemoModel, prompt: list[int], eos: int, start: list[int] | None = None, limit: int = MAX_NEW_TOKENS
) -> list[int]:
    """Greedy continuation without its end-of-sentence token. No cache: simple, and short here.

    `start` may hold a guess. As much of it as the model itself would write is taken over in one pass.
    """
    guess = start or []
    logits = model([torch.tensor([prompt + guess])], torch.arange(len(prompt) - 1, len(prompt) + len(guess)))
    choices: list[int] = logits.argmax(-1).tolist()
    agreed = next((i for i, token in enumerate(guess) if choices[i] != token), len(guess))
    written = [*guess[:agreed], choices[agreed]]
    while written[-1] != eos and len(written) < limit:
        ids = prompt + written
        written.append(int(model([torch.tensor([ids])], torch.tensor([len(ids) - 1])).argmax()))
    return written[: written.index(eos)] if eos in written else written


def answer_of(text: str) -> str:
    """What follows the reasoning."""
    return text.rpartition("</think>")[2].strip()


def is_right(model: DemoModel, tokenizer: Tokenizer, sample: Sample) -> bool:
    """Whether greedy decoding gives exactly the sample's answer."""
    prompt, expected = encode_sample(tokenizer, sample)
    written = generate(model, prompt, expected[-1], expected[:-1])
    text: str = tokenizer.decode(written, skip_special_tokens=False)
    return answer_of(text) == sample.answer


def scores(model: DemoModel, tokenizer: Tokenizer, samples: list[Sample]) -> dict[str, float]:
    """The share of exact answers per task."""
    hits: dict[str, list[bool]] = defaultdict(list)
    for sample in samples:
        hits[sample.task].append(is_right(model, tokenizer, sample))
    return {task: sum(h) / len(h) for task, h in hits.items()}


def write_held_out(path: Path, samples: list[Sample]) -> None:
    """One JSON object a line: task, messages, answer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as out:
        for s in samples:
            line = {"task": s.task, "messages": s.messages, "answer": s.answer}
            out.write(json.dumps(line, ensure_ascii=False) + "\n")
