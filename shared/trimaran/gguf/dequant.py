"""The bytes of any GGML type → float32, the slow and exact reference for every kernel.

All arithmetic is float32, in the order in which the formats define it (scale of the block times scale of the
group, then times the value, then the minimum), so that results agree to the last bit with other readers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod

import numpy as np

from trimaran.gguf import dequant_iq, dequant_k
from trimaran.gguf.iq_grids import IQ4_LEVELS
from trimaran.gguf.types import GGMLType
from trimaran.gguf.unpack import NIBBLES, Bytes, Floats, bits, halves, planes, words

VALUES_AT_ONCE = 1 << 20
"""Values that are unpacked at a time: bounds the memory beside the result."""

Dequantizer = Callable[[Bytes], Floats]
"""Blocks uint8 [n, type_size] → float32 [n, block_size]."""


def dequantize(kind: GGMLType, raw: Bytes, shape: tuple[int, ...]) -> Floats:
    """Decode a tensor, or whole rows of one.

    Args:
        kind: the type of the values.
        raw: uint8 [nbytes], contiguous, as `GGUFFile.raw` gives it.
        shape: of the result, outermost first.

    Returns:
        float32 of `shape`, an array of its own.

    Raises:
        ValueError: `raw` has not the size that type and shape ask for.
    """
    nbytes = prod(shape[:-1]) * kind.row_bytes(shape[-1])
    if raw.dtype != np.uint8 or raw.size != nbytes:
        raise ValueError(f"{kind.name}{list(shape)} needs uint8[{nbytes}], not {raw.dtype}[{raw.size}]")
    blocks = raw.reshape(-1, kind.type_size)
    out = np.empty((len(blocks), kind.block_size), np.float32)
    step = VALUES_AT_ONCE // kind.block_size
    with np.errstate(all="ignore"):  # a file may hold infinite scales; they give what IEEE arithmetic gives
        for start in range(0, len(blocks), step):
            out[start : start + step] = _DEQUANTIZERS[kind](blocks[start : start + step])
    return out.reshape(shape)


def _plain(dtype: str) -> Dequantizer:
    def read(blocks: Bytes) -> Floats:
        return np.ascontiguousarray(blocks).view(dtype).astype(np.float32)

    return read


def _bf16(blocks: Bytes) -> Floats:
    return (words(blocks, "<u2").astype(np.uint32) << 16).view(np.float32)


def _q4_0(blocks: Bytes) -> Floats:
    q = planes(blocks[:, 2:], NIBBLES, 16)
    return halves(blocks, 0) * (q.astype(np.float32) - 8)


def _q4_1(blocks: Bytes) -> Floats:
    q = planes(blocks[:, 4:], NIBBLES, 16)
    return halves(blocks, 0) * q.astype(np.float32) + halves(blocks, 2)


def _q5_0(blocks: Bytes) -> Floats:
    q = planes(blocks[:, 6:], NIBBLES, 16) | (bits(blocks[:, 2:6]) << np.uint8(4))
    return halves(blocks, 0) * (q.astype(np.float32) - 16)


def _q5_1(blocks: Bytes) -> Floats:
    q = planes(blocks[:, 8:], NIBBLES, 16) | (bits(blocks[:, 4:8]) << np.uint8(4))
    return halves(blocks, 0) * q.astype(np.float32) + halves(blocks, 2)


def _q8_0(blocks: Bytes) -> Floats:
    return halves(blocks, 0) * blocks[:, 2:].view(np.int8).astype(np.float32)


def _iq4_nl(blocks: Bytes) -> Floats:
    levels = np.array(IQ4_LEVELS, np.float32)
    return halves(blocks, 0) * levels[planes(blocks[:, 2:], NIBBLES, 16)]


_DEQUANTIZERS: Mapping[GGMLType, Dequantizer] = {
    GGMLType.F32: _plain("<f4"),
    GGMLType.F16: _plain("<f2"),
    GGMLType.BF16: _bf16,
    GGMLType.F64: _plain("<f8"),
    GGMLType.I8: _plain("|i1"),
    GGMLType.I16: _plain("<i2"),
    GGMLType.I32: _plain("<i4"),
    GGMLType.I64: _plain("<i8"),
    GGMLType.Q4_0: _q4_0,
    GGMLType.Q4_1: _q4_1,
    GGMLType.Q5_0: _q5_0,
    GGMLType.Q5_1: _q5_1,
    GGMLType.Q8_0: _q8_0,
    GGMLType.Q2_K: dequant_k.q2_k,
    GGMLType.Q3_K: dequant_k.q3_k,
    GGMLType.Q4_K: dequant_k.q4_k,
    GGMLType.Q5_K: dequant_k.q5_k,
    GGMLType.Q6_K: dequant_k.q6_k,
    GGMLType.IQ1_S: dequant_iq.iq1_s,
    GGMLType.IQ1_M: dequant_iq.iq1_m,
    GGMLType.IQ2_XXS: dequant_iq.iq2_xxs,
    GGMLType.IQ2_XS: dequant_iq.iq2_xs,
    GGMLType.IQ2_S: dequant_iq.iq2_s,
    GGMLType.IQ3_XXS: dequant_iq.iq3_xxs,
    GGMLType.IQ3_S: dequant_iq.iq3_s,
    GGMLType.IQ4_NL: _iq4_nl,
    GGMLType.IQ4_XS: dequant_iq.iq4_xs,
}
