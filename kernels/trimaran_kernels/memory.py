"""Memory as vector instructions like it."""

from __future__ import annotations

import contextlib
import mmap

import numpy as np
from numpy.typing import NDArray

CACHE_LINE = 64
HUGE_PAGE = 2 << 20
_BLOCK = 32 << 20


def aligned_bytes(size: int) -> NDArray[np.uint8]:
    """`size` bytes of any value, uint8, that start on a cache line: where `pack` should write to."""
    memory = np.empty(size + CACHE_LINE, np.uint8)
    skipped = -memory.ctypes.data % CACHE_LINE
    return memory[skipped : skipped + size]


class HugePages:
    """Hands out memory in huge pages, where the kernel has some: reading it takes fewer page walks.

    Small pieces share blocks; a block lives until its last piece is gone.
    """

    def __init__(self) -> None:
        self._block = np.empty(0, np.uint8)

    def take(self, size: int) -> NDArray[np.uint8]:
        """`size` bytes, uint8, that start on a cache line."""
        rounded = -(-size // CACHE_LINE) * CACHE_LINE
        if rounded > len(self._block):
            block = _map_block(max(rounded, _BLOCK))
            if rounded >= _BLOCK:  # the rest of the current one is still of use
                return block[:size]
            self._block = block
        piece, self._block = self._block[:size], self._block[rounded:]
        return piece


def _map_block(size: int) -> NDArray[np.uint8]:
    memory = mmap.mmap(-1, size + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    block = np.frombuffer(memory, np.uint8)
    skipped = -block.ctypes.data % HUGE_PAGE
    return block[skipped : skipped + size]
