"""What sections of `make gpu-check` said while they were walked on the CPU."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def failures(said: Iterable[object]) -> list[str]:
    """What failed, in the sections' words."""
    return [message.what for message in said if type(message).__name__ == "Failed"]  # type: ignore[attr-defined]


def cases(said: Iterable[object]) -> list[str]:
    """What was measured or compared."""
    return [message.case for message in said if type(message).__name__ == "Figure"]  # type: ignore[attr-defined]
