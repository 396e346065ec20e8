"""Quantisation to the types with blocks of 32 values: one scale (and minimum) a block.

Every function takes blocks float32 [n, 32] of finite values within the range of float16 and returns uint8
[n, type_size].
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

TINY = np.float32(1e-20)
_4, _15 = np.uint8(4), np.uint8(15)


def q4_0(x: Floats) -> Bytes:
    """x = d · (q - 8)."""
    scale, q = _signed_scale(x, 8)
    return np.concatenate([half_bytes(scale), _nibbles(q)], axis=1)


def q4_1(x: Floats) -> Bytes:
    """x = d · q + m."""
    scale, low, q = _scale_and_minimum(x, 15)
    return np.concatenate([half_bytes(scale), half_bytes(low), _nibbles(q)], axis=1)


def q5_0(x: Floats) -> Bytes:
    """x = d · (q - 16), the fifth bits apart."""
    scale, q = _signed_scale(x, 16)
    return np.concatenate([half_bytes(scale), _fifth_bits(q), _nibbles(q & _15)], axis=1)


def q5_1(x: Floats) -> Bytes:
    """x = d · q + m, the fifth bits apart."""
    scale, low, q = _scale_and_minimum(x, 31)
    return np.concatenate([half_bytes(scale), half_bytes(low), _fifth_bits(q), _nibbles(q & _15)], axis=1)


def q8_0(x: Floats) -> Bytes:
    """x = d · q with q a signed byte."""
    scale = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
    q = np.rint(x * inverse(scale)).astype(np.int8)
    return np.concatenate([half_bytes(scale), q.view(np.uint8)], axis=1)


def inverse(scale: Floats) -> Floats:
    """1 / scale, and 0 for a scale of 0 or one far below the smallest float16, which is stored as 0."""
    return np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=np.abs(scale) > TINY)


def half_bytes(scale: Floats) -> Bytes:
    """float32 [n, k] as float16, uint8 [n, 2 k]."""
    return np.ascontiguousarray(scale).astype("<f2").view(np.uint8)


def _signed_scale(x: Floats, half: int) -> tuple[Floats, Bytes]:
    """The value of the largest magnitude becomes exactly -half; scale [n, 1] and q [n, 32] in 0..2·half-1."""
    extreme = np.take_along_axis(x, np.abs(x).argmax(axis=1, keepdims=True), axis=1)
    scale = extreme / np.float32(-half)
    q = np.floor(x * inverse(scale) + np.float32(half + 0.5))
    return scale, q.clip(0, 2 * half - 1).astype(np.uint8)


def _scale_and_minimum(x: Floats, most: int) -> tuple[Floats, Floats, Bytes]:
    """Smallest value → 0, largest → `most`; scale [n, 1], minimum [n, 1] and q [n, 32]."""
    low = x.min(axis=1, keepdims=True)
    scale = (x.max(axis=1, keepdims=True) - low) / np.float32(most)
    q = np.floor((x - low) * inverse(scale) + np.float32(0.5))
    return scale, low, q.clip(0, most).astype(np.uint8)


def _nibbles(q: Bytes) -> Bytes:
    """Values 0..15 [n, 32] → bytes [n, 16]: the first half in the low nibbles, the second in the high."""
    return q[:, :16] | (q[:, 16:] << _4)


def _fifth_bits(q: Bytes) -> Bytes:
    """Bit 4 of each of 32 values → 4 bytes, the first value in the lowest bit."""
    return np.packbits(q >> _4, axis=1, bitorder="little")
