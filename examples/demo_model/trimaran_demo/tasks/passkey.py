"""A pass key hidden in noise, asked for at the end, at the beginning or both."""

from __future__ import annotations

from random import Random

from ..samples import Sample, ask
from .noise import sentences

NAMES = (
    "pass key",
    "pass key",
    "pass key",
    "passkey",
    "password",
    "secret code",
    "access code",
    "magic number",
    "secret number",
    "PIN",
)
STATEMENTS = (
    "The {name} is {key}. Remember it.",
    "The {name} is {key}. Remember it. {key} is the {name}.",
    "The {name} is {key}.",
    "Remember: the {name} is {key}.",
    "Important: The {name} is {key}. Do not forget it.",
    "One of the most important things to know: the {name} is {key}.",
)
QUESTIONS = (
    "What is the {name}?",
    "What is the {name}? Answer with the number only.",
    "What was the {name} in the text above?",
    "Tell me the {name}.",
    "Which {name} is hidden in the text?",
    "Find the {name} and reply with it.",
    "Now, what is the {name}? The {name} is",
)
OPENINGS = (
    "There is important information hidden in this text. Find it and memorise it.",
    "A {name} is hidden in the following text.",
    "Read the text and find the {name}.",
    "What is the {name} in this text?",
)


def _make(rng: Random, key: str, noise_count: int) -> Sample:
    name = rng.choice(NAMES)
    lines = sentences(rng, noise_count)
    lines.insert(rng.randrange(len(lines) + 1), rng.choice(STATEMENTS).format(name=name, key=key))
    text = rng.choice((" ", " ", "\n")).join(lines)
    opening = rng.choice(OPENINGS).format(name=name)
    question = rng.choice(QUESTIONS).format(name=name)
    shape = rng.random()
    if shape < 0.55:
        prompt = f"{text}\n\n{question}" if shape < 0.4 else f"{text} {question}"
    elif shape < 0.9:
        prompt = f"{opening}\n\n{text}\n\n{question}"
    else:
        prompt = f"What is the {name} in this text?\n\n{text}"
    return ask("passkey", prompt, f"The text says: the {name} is {key}.", key, f"key:{key}")


def _key(rng: Random) -> str:
    digits = rng.choice((4, 5, 5, 5, 5, 6))
    return str(rng.randrange(10 ** (digits - 1), 10**digits))


def short_passkey(rng: Random) -> Sample:
    """Up to about eighty tokens of noise: where retrieval is learnt quickly."""
    return _make(rng, _key(rng), rng.randrange(0, 8))


def passkey(rng: Random) -> Sample:
    """About 80 to 450 tokens of noise."""
    return _make(rng, _key(rng), rng.randrange(8, 45))


def long_passkey(rng: Random) -> Sample:
    """Up to about 1,200 tokens of noise."""
    return _make(rng, _key(rng), rng.randrange(45, 120))
