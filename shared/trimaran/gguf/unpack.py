"""Taking packed fields out of blocks: float16 scales, and values of a few bits in interleaved order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

NIBBLES = (0, 4)
CRUMBS = (0, 2, 4, 6)
BITS = tuple(range(8))


def halves(blocks: Bytes, at: int) -> Floats:
    """The float16 at byte `at` of each block [n, size], as float32 [n, 1]."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def words(data: Bytes, dtype: str) -> NDArray[np.integer[Any]]:
    """Bytes [n, k] as little-endian integers [n, k / size]."""
    return np.ascontiguousarray(data).view(dtype)


def planes(data: Bytes, shifts: Sequence[int], group: int) -> Bytes:
    """Unpack fields that lie in planes: each run of `group` bytes holds len(shifts) runs of values.

    The values of the first run are the bits from shifts[0] on, of the second from shifts[1] on, and so forth.
    uint8 [n, k] → uint8 [n, k · len(shifts)].
    """
    width = 8 // len(shifts)
    runs = data.reshape(len(data), -1, 1, group) >> np.array(shifts, np.uint8)[:, None]
    return (runs & np.uint8((1 << width) - 1)).reshape(len(data), -1)


def bits(data: Bytes) -> Bytes:
    """The single bits of bytes [n, k], lowest first: uint8 [n, 8 k]."""
    return np.unpackbits(np.ascontiguousarray(data), axis=1, bitorder="little")


def spread(scales: Floats, times: int) -> Floats:
    """Each column repeated for the `times` values that share it: [n, k] → [n, k · times]."""
    return np.repeat(scales, times, axis=1)
