"""Meaningless but grammatical text to hide things in."""

from __future__ import annotations

from random import Random

from .words import phrases, words

CLASSIC = (
    "The grass is green.",
    "The sky is blue.",
    "The sun is yellow.",
    "Here we go.",
    "There and back again.",
)
NOUNS = words(
    "river garden teacher window engine mountain letter kitchen doctor forest market station bridge "
    "picture farmer island winter morning story table lamp road horse singer door bottle child city "
    "cloud desk friend house machine paper party plane student ship tree village wall water wind"
)
ADJECTIVES = words(
    "old small quiet bright heavy green early simple strange cold gentle broken empty famous large "
    "narrow modern dark new red slow warm wise young"
)
VERBS = words(
    "follows watches finds leaves holds reaches opens carries paints likes meets moves passes remembers "
    "sees visits hears needs draws keeps"
)
PLACES = phrases(
    "in the valley, near the sea, behind the house, at night, every day, after lunch, on Monday, "
    "without a sound, in spring, by train"
)
OPENERS = phrases("Later,Today,Sometimes,In fact,However,Of course,At first,Perhaps")


def sentence(rng: Random) -> str:
    """One sentence from the grammar."""
    a, b = rng.choice(NOUNS), rng.choice(NOUNS)
    subject = f"the {rng.choice(ADJECTIVES)} {a}" if rng.random() < 0.6 else f"a {a}"
    text = f"{subject} {rng.choice(VERBS)} the {b}"
    if rng.random() < 0.5:
        text += " " + rng.choice(PLACES)
    if rng.random() < 0.2:
        return f"{rng.choice(OPENERS)}, {text}."
    return text[0].upper() + text[1:] + "."


def _with_number(rng: Random) -> str:
    """A sentence with a number that is not the key, so that any number will not do."""
    pattern = rng.choice(
        (
            "The train leaves at {h}:{m}.",
            "There are {n} {noun}s in the {other}.",
            "It was the year {y}.",
            "Page {n} is missing.",
            "The {noun} costs {n} dollars.",
        )
    )
    return pattern.format(
        h=rng.randrange(24),
        m=f"{rng.randrange(60):02}",
        n=rng.randrange(2, 1000),
        y=rng.randrange(1500, 2030),
        noun=rng.choice(NOUNS),
        other=rng.choice(NOUNS),
    )


def sentences(rng: Random, count: int) -> list[str]:
    """`count` noise sentences of one style: the classic five, the grammar, or the grammar with numbers."""
    style = rng.random()
    if style < 0.25:
        start = rng.randrange(5)
        return [CLASSIC[(start + i) % 5] for i in range(count)]
    number_share = 0.15 if style < 0.6 else 0.0
    return [_with_number(rng) if rng.random() < number_share else sentence(rng) for _ in range(count)]
