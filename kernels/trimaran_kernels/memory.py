"""Memory as vector instructions like it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CACHE_LINE = 64


def aligned_bytes(size: int) -> NDArray[np.uint8]:
    """`size` bytes of any value, uint8, that start on a cache line: where `pack` should write to."""
    memory = np.empty(size + CACHE_LINE, np.uint8)
    skipped = -memory.ctypes.data % CACHE_LINE
    return memory[skipped : skipped + size]
