"""Copying arbitrary text, sorting, reversing and counting."""

from __future__ import annotations

import string
from random import Random

from ..samples import Sample, ask
from .noise import ADJECTIVES, NOUNS, VERBS, sentence

COPY_PHRASES = (
    "Repeat: {text}",
    "Repeat after me: {text}",
    "Copy this text exactly: {text}",
    "Say this again: {text}",
    "Echo: {text}",
    "Repeat exactly:\n{text}",
)
SORT_PHRASES = (
    "Sort these numbers: {items}",
    "Sort the numbers {items} from smallest to largest.",
    "Put in ascending order: {items}",
    "Sort: {items}",
    "Sort {items} in increasing order.",
)


def _random_word(rng: Random) -> str:
    kind = rng.random()
    if kind < 0.4:
        return rng.choice(rng.choice((NOUNS, ADJECTIVES, VERBS)))
    if kind < 0.6:
        return str(rng.randrange(10 ** rng.randrange(1, 7)))
    alphabet = (
        string.ascii_lowercase if kind < 0.85 else string.ascii_letters + string.digits + "-_.:#@!?%&*/+="
    )
    return "".join(rng.choice(alphabet) for _ in range(rng.randrange(1, 8)))


def copy(rng: Random) -> Sample:
    """Words, numbers, random strings or a sentence, given back unchanged."""
    if rng.random() < 0.2:
        text = " ".join(sentence(rng) for _ in range(rng.choice((1, 1, 2))))
    else:
        text = " ".join(_random_word(rng) for _ in range(rng.randrange(1, 10)))
    question = rng.choice(COPY_PHRASES).format(text=text)
    return ask("copy", question, "I repeat the text exactly.", text, f"copy:{text}")


def reason_sort(numbers: list[int]) -> str:
    """Selection sort: what is left, then its smallest."""
    left, lines = list(numbers), []
    while len(left) > 1:
        smallest = min(left)
        lines.append(f"{' '.join(map(str, left))}: {smallest}")
        left.remove(smallest)
    return "\n".join([*lines, f"{left[0]}: {left[0]}"])


def sort(rng: Random) -> Sample:
    """Two to six different numbers below one hundred, sorted."""
    numbers = rng.sample(range(100), rng.choice((2, 3, 3, 4, 4, 5, 5, 6)))
    question = rng.choice(SORT_PHRASES).format(items=", ".join(map(str, numbers)))
    answer = ", ".join(map(str, sorted(numbers)))
    return ask("sort", question, reason_sort(numbers), answer, f"sort:{numbers}")


def count(rng: Random) -> Sample:
    """Counting up from one number to another."""
    start = rng.randrange(0, 90)
    end = start + rng.randrange(2, 11)
    question = rng.choice(
        ("Count from {a} to {b}.", "Count up from {a} to {b}", "List the numbers from {a} to {b}.")
    )
    answer = ", ".join(str(n) for n in range(start, end + 1))
    return ask(
        "count", question.format(a=start, b=end), f"From {start} to {end}.", answer, f"count:{start}:{end}"
    )
