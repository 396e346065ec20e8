"""What differs between GPUs, as far as kernels depend on it."""

from __future__ import annotations

import triton
from triton.runtime.driver import driver

_LARGE = (90, 100, 103)


def interprets() -> bool:
    """Whether kernels run in Triton's interpreter, which knows no PTX."""
    return bool(triton.knobs.runtime.interpret)


def keeps_wide_tiles() -> bool:
    """Whether Triton's compiler keeps 64 rows of 512 sums in the registers of eight warps.

    3.6 does, 3.9 spills some hundred bytes a thread.
    """
    return tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 7)


def has_large_shared_memory() -> bool:
    """227 KiB for a program, as in Hopper and its successors for data centres; others have 99 or more.

    True in the interpreter, where it does not matter.
    """
    return interprets() or driver.active.get_current_target().arch in _LARGE
