"""A large, nasty sample of text: every character, and random mixtures of what tokenisers trip over."""

from __future__ import annotations

import random

_CLASSES = (
    "abcXYZéßЖжΩλıǅﬁÅ",
    "你好世界々〇カタひら한국어ｱｶ",
    "0123456789٣๔½²Ⅷ一",
    " \t\u00a0\u3000\u200b\u2028\ufeff",
    "\n\r\x00\x07\x1b\x7f\x85",
    "\u0301\u0308\u20e3\ufe0f\u200d\u0e31\u0f71\U000e0041",
    "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~،。「」…—‘’“”",
    "🙂👩🏳️🇩🇪💻👨‍👩‍👧",
    "def return self. x=1;{}[]()->=> == != //# /* */ \\n",
    "don't we'll HE'S <think> <| |> ｜▁",
    "ᚠߊकখกༀᠠᎠⴰ𐌰𒀀𓀀𝕏",
)


_CODES = (range(0xD800), range(0xF900, 0x20000), range(0x2F800, 0x2FA20), range(0xE0000, 0xE0200))
"""The planes that hold characters, without surrogates, private ones and most rare ideographs."""


def nasty_sample() -> list[str]:
    """Some 300 texts with a quarter of a million characters, always the same."""
    characters = [chr(code) for part in _CODES for code in part]
    blocks = ["".join(characters[start : start + 4096]) for start in range(0, len(characters), 4096)]
    spaced = [" ".join(block[:1024]) for block in blocks]
    return [*blocks, *spaced, *(_mixture(random.Random(seed)) for seed in range(200))]


def _mixture(source: random.Random) -> str:
    parts = []
    for _ in range(source.randint(5, 60)):
        kind = source.choice(_CLASSES)
        parts.append("".join(source.choice(kind) for _ in range(source.randint(1, 12))))
        if source.random() < 0.1:
            parts.append(source.choice(" \n\tx0!好") * source.randint(2, 40))
    return "".join(parts)
