"""float32 ⇄ bfloat16, whose bits numpy carries as uint16."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def to_bf16(x: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The nearest bfloat16, ties to even. NaN stays NaN."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    quiet = (bits >> 16).astype(np.uint16) | np.uint16(0x40)
    return np.where(np.isnan(x), quiet, rounded)


def from_bf16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Exact."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
