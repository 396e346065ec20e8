"""float32 → the bytes of a GGML type.

The results are read by any GGUF reader; the search for scales is ours, so they need not be the very bytes
that another quantiser would write.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from trimaran.gguf import quantize_blocks as blocks
from trimaran.gguf import quantize_k as supers
from trimaran.gguf.types import GGMLType

FLOAT16_MAX = 65504
VALUES_AT_ONCE = 1 << 20
"""Values that are quantised at a time: bounds the memory that the search for scales needs."""

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Quantizer = Callable[[Floats], Bytes]
"""Blocks float32 [n, block_size] → uint8 [n, type_size]."""


def _f32(x: Floats) -> Bytes:
    return x.view(np.uint8)


def _f16(x: Floats) -> Bytes:
    with np.errstate(over="ignore"):  # what does not fit becomes infinite, as it should
        return x.astype(np.float16).view(np.uint8)


def _bf16(x: Floats) -> Bytes:
    bits = x.view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16  # to nearest, ties to even
    quiet_nan = (bits >> 16) | 0x40
    halves: NDArray[np.uint16] = np.where(np.isnan(x), quiet_nan, rounded).astype(np.uint16)
    return halves.view(np.uint8)


_QUANTIZERS: dict[GGMLType, Quantizer] = {
    GGMLType.F32: _f32,
    GGMLType.F16: _f16,
    GGMLType.BF16: _bf16,
    GGMLType.Q4_0: blocks.q4_0,
    GGMLType.Q4_1: blocks.q4_1,
    GGMLType.Q5_0: blocks.q5_0,
    GGMLType.Q5_1: blocks.q5_1,
    GGMLType.Q8_0: blocks.q8_0,
    GGMLType.IQ4_NL: supers.iq4_nl,
    GGMLType.Q2_K: supers.q2_k,
    GGMLType.Q3_K: supers.q3_k,
    GGMLType.Q4_K: supers.q4_k,
    GGMLType.Q5_K: supers.q5_k,
    GGMLType.Q6_K: supers.q6_k,
    GGMLType.IQ4_XS: supers.iq4_xs,
}

QUANTIZABLE = frozenset(_QUANTIZERS)
"""Types that can be written."""


def quantize(kind: GGMLType, x: Floats) -> Bytes:
    """Quantise float32 `x`, whose rows (the last axis) must divide into blocks, to uint8 [nbytes].

    Raises:
        ValueError: the rows do not divide into blocks, or a value that is to be quantised is not finite or
            beyond the range of float16, in which blocks keep their scales.
        NotImplementedError: the type can be read but not written (most IQ types).
    """
    if kind not in _QUANTIZERS:
        raise NotImplementedError(f"{kind.name} cannot be written")
    kind.row_bytes(x.shape[-1])
    flat = np.ascontiguousarray(x, dtype=np.float32).reshape(-1, kind.block_size)
    if kind.is_quantised and not (np.abs(flat) <= FLOAT16_MAX).all():  # false for NaN as well
        raise ValueError(f"values beyond ±{FLOAT16_MAX} or not finite cannot be quantised to {kind.name}")
    out = np.empty((len(flat), kind.type_size), np.uint8)
    step = VALUES_AT_ONCE // kind.block_size
    for start in range(0, len(flat), step):
        part = flat[start : start + step]
        out[start : start + step] = _QUANTIZERS[kind](part).reshape(len(part), -1)
    return out.reshape(-1)
