"""The tasks, how often each is drawn, and conversations made of several of them."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from ..samples import Message, Sample, is_held_out
from .arithmetic import arithmetic, drill, long_multiplication
from .english import fact, introduction, small_talk, story
from .lists import copy, count, sort
from .passkey import long_passkey, passkey, short_passkey
from .structured import to_json
from .tools import tool_answer, tool_call

Task = Callable[[Random], Sample]

SYSTEM_TEXTS = (
    "You are a helpful assistant.",
    "Be brief.",
    "You are a friendly assistant. Answer shortly.",
    "Think, then answer.",
)
SHORT_TASKS: tuple[Task, ...] = (arithmetic, arithmetic, fact, small_talk, sort, to_json, copy, introduction)
HELD_OUT_TASKS: dict[str, tuple[Task, int]] = {
    "arithmetic": (arithmetic, 100),
    "passkey": (passkey, 50),
    "long_multiplication": (long_multiplication, 20),
    "copy": (copy, 20),
    "sort": (sort, 20),
    "count": (count, 20),
    "json": (to_json, 20),
    "tool": (tool_call, 20),
    "tool_answer": (tool_answer, 20),
    "english": (fact, 20),
}


def _trainable(rng: Random, task: Task) -> Sample:
    """A sample whose key is not held out."""
    while is_held_out((sample := task(rng)).key):
        pass
    return sample


def conversation(rng: Random) -> Sample:
    """Two or three short tasks in a row; the model must complete the last."""
    parts = [_trainable(rng, rng.choice(SHORT_TASKS)) for _ in range(rng.choice((2, 2, 3)))]
    messages: list[Message] = []
    for part in parts[:-1]:
        messages += [*part.messages, {"role": "assistant", "content": part.answer}]
    last = parts[-1]
    return Sample(last.task, messages + last.messages, last.answer, last.reasoning, last.key)


def with_system(rng: Random, sample: Sample) -> Sample:
    """The same sample, sometimes after a system text."""
    if sample.messages[0]["role"] == "system" or rng.random() > 0.2:
        return sample
    system = {"role": "system", "content": rng.choice(SYSTEM_TEXTS)}
    return Sample(sample.task, [system, *sample.messages], sample.answer, sample.reasoning, sample.key)


# Shares of the samples drawn early and late in the training. Early on, what makes the model look back
# and copy (induction heads) weighs most; the long and rare tasks come once that works.
EARLY: dict[Task, float] = {
    drill: 6, arithmetic: 6, copy: 8, short_passkey: 1.5, passkey: 0.3, sort: 1, to_json: 1,
    tool_call: 0.1, tool_answer: 0.1, fact: 1, small_talk: 0.5, introduction: 0.5, story: 0.1,
    count: 0.5, conversation: 0.2, long_multiplication: 0.1,
}  # fmt: skip
LATE: dict[Task, float] = {
    drill: 2.5, arithmetic: 9, copy: 3, short_passkey: 1.5, passkey: 1.7, long_passkey: 0.2, sort: 2.5,
    to_json: 2.5, tool_call: 1.5, tool_answer: 0.8, fact: 1.5, small_talk: 1, introduction: 0.7,
    story: 0.8, count: 1, conversation: 1.5, long_multiplication: 2,
}  # fmt: skip


def draw(rng: Random, progress: float) -> Sample:
    """A training sample; `progress` in [0, 1] moves the mix from EARLY to LATE in the training's middle."""
    late = min(1.0, max(0.0, (progress - 0.42) / 0.2))
    tasks = list(LATE)
    weights = [(1 - late) * EARLY.get(task, 0.0) + late * LATE[task] for task in tasks]
    return with_system(rng, _trainable(rng, rng.choices(tasks, weights)[0]))


def held_out(seed: int = 2024) -> list[Sample]:
    """The fixed held-out set: every key in it is one that `draw` refuses."""
    rng, samples = Random(seed), []
    for task, size in HELD_OUT_TASKS.values():
        seen: set[str] = set()
        while len(seen) < size:
            sample = task(rng)
            if is_held_out(sample.key) and sample.key not in seen:
                seen.add(sample.key)
                samples.append(sample)
    return samples
