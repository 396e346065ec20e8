"""How many rows a recorded step has: a few sizes, each padded to."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence


def bucket_sizes(max_running: int) -> tuple[int, ...]:
    """1, 2, 4, … and `max_running` itself."""
    powers = (1 << exponent for exponent in range(max_running.bit_length()))
    return (*(size for size in powers if size < max_running), max_running)


def bucket_of(n: int, sizes: Sequence[int]) -> int:
    """The smallest size that holds n rows; n is at most the largest."""
    return sizes[bisect_left(sizes, n)]
