"""Word lists written as text, broken at 110 columns instead of one word a line."""

from __future__ import annotations


def words(text: str) -> list[str]:
    """The words of a text."""
    return text.split()


def phrases(text: str) -> list[str]:
    """The parts of a text between commas."""
    return [part.strip() for part in text.split(",")]


def pairs(text: str) -> dict[str, str]:
    """A dictionary from words like `hot:cold`."""
    return dict(word.split(":", 1) for word in text.split())
