"""The IQ types: super-blocks of 256 values, each an index into a code book, or one of sixteen levels.

Every function takes blocks uint8 [n, type_size] and returns float32 [n, 256].
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimaran.gguf.iq_grids import (
    IQ1_DELTA,
    IQ1_GRID,
    IQ2_S_GRID,
    IQ2_XS_GRID,
    IQ2_XXS_GRID,
    IQ3_S_GRID,
    IQ3_XXS_GRID,
    IQ4_LEVELS,
    SIGN_MASKS,
    Grid,
)
from trimaran.gguf.unpack import CRUMBS, NIBBLES, Bytes, Floats, bits, halves, planes, spread, words

Indices = NDArray[np.integer[Any]]


def iq2_xxs(blocks: Bytes) -> Floats:
    """d f16 | 8 groups of 32: grid index u8[4], then 4 signs of 7 bits and a scale of 4 bits in a u32."""
    groups = blocks[:, 2:].reshape(-1, 8, 8)
    packed = words(groups[:, :, 4:].reshape(-1, 32), "<u4")
    scales = _half_steps(halves(blocks, 0), packed >> 28, 0.25)
    values = _look_up(IQ2_XXS_GRID, groups[:, :, :4].reshape(-1, 32))
    return spread(scales, 32) * values * _packed_signs(packed)


def iq2_xs(blocks: Bytes) -> Floats:
    """d f16 | u16[32]: grid index 9 bits, signs 7 bits | scales u4[16]."""
    packed = words(blocks[:, 2:66], "<u2")
    scales = _half_steps(halves(blocks, 0), planes(blocks[:, 66:], NIBBLES, 1), 0.25)
    signs = _signs(SIGN_MASKS[packed >> 9])
    return spread(scales, 16) * _look_up(IQ2_XS_GRID, packed & 511) * signs


def iq2_s(blocks: Bytes) -> Floats:
    """d f16 | grid index low u8[32] | signs u1[256] | index high u2[32] | scales u4[16]."""
    index = _join(blocks[:, 2:34], planes(blocks[:, 66:74], CRUMBS, 1))
    scales = _half_steps(halves(blocks, 0), planes(blocks[:, 74:], NIBBLES, 1), 0.25)
    return spread(scales, 16) * _look_up(IQ2_S_GRID, index) * _signs(blocks[:, 34:66])


def iq3_xxs(blocks: Bytes) -> Floats:
    """d f16 | grid index u8[64] | u32[8]: 4 signs of 7 bits and a scale of 4 bits."""
    packed = words(blocks[:, 66:], "<u4")
    scales = _half_steps(halves(blocks, 0), packed >> 28, 0.5)
    return spread(scales, 32) * _look_up(IQ3_XXS_GRID, blocks[:, 2:66]) * _packed_signs(packed)


def iq3_s(blocks: Bytes) -> Floats:
    """d f16 | grid index low u8[64] | index high u1[64] | signs u1[256] | scales u4[8]."""
    index = _join(blocks[:, 2:66], bits(blocks[:, 66:74]))
    steps = planes(blocks[:, 106:], NIBBLES, 1).astype(np.float32)
    scales = halves(blocks, 0) * (1 + 2 * steps)
    return spread(scales, 32) * _look_up(IQ3_S_GRID, index) * _signs(blocks[:, 74:106])


def iq1_s(blocks: Bytes) -> Floats:
    """d f16 | grid index low u8[32] | u16[8]: index high u3[4], scale u3, shift u1."""
    high = words(blocks[:, 34:], "<u2")
    index = _join(blocks[:, 2:34], _fields(high, (0, 3, 6, 9)))
    scales = halves(blocks, 0) * (2 * ((high >> 12) & 7).astype(np.float32) + 1)
    shift = _shift(high >> 15)
    return spread(scales, 32) * (_look_up(IQ1_GRID, index) + spread(shift, 32))


def iq1_m(blocks: Bytes) -> Floats:
    """grid index low u8[32] | index high u3 and shift u1 [32] | u16[4]: scales u3[4], 4 bits of d each."""
    high = planes(blocks[:, 32:48], NIBBLES, 1)
    index = _join(blocks[:, :32], high & np.uint8(7))
    packed = words(blocks[:, 48:], "<u2")
    steps = _fields(packed, (0, 3, 6, 9)).astype(np.float32)
    scales = _scattered_half(packed) * (2 * steps + 1)
    shift = _shift(high >> 3)
    return spread(scales, 16) * (_look_up(IQ1_GRID, index) + spread(shift, 8))


def iq4_xs(blocks: Bytes) -> Floats:
    """d f16 | scales high u2[8] | scales low u4[8] | q u4[256]; scale = value - 32."""
    high = planes(blocks[:, 2:4], CRUMBS, 1)
    low = planes(blocks[:, 4:8], NIBBLES, 1)
    scales = halves(blocks, 0) * ((low | (high << np.uint8(4))).astype(np.float32) - 32)
    levels = np.array(IQ4_LEVELS, np.float32)
    return spread(scales, 32) * levels[planes(blocks[:, 8:], NIBBLES, 16)]


def _look_up(grid: Grid, index: Indices) -> Floats:
    """Indices [n, k] → values [n, k · width]."""
    return grid.values()[index].astype(np.float32).reshape(len(index), -1)


def _join(low: Bytes, high: Indices) -> Indices:
    """Indices from their low bytes and the bits above."""
    return low.astype(np.uint16) | (high.astype(np.uint16) << np.uint16(8))


def _fields(packed: Indices, shifts: tuple[int, ...]) -> NDArray[np.uint8]:
    """Fields of three bits out of each word [n, k], at `shifts`: [n, k · len(shifts)]."""
    fields = (packed[:, :, None] >> np.array(shifts, packed.dtype)) & 7
    return fields.astype(np.uint8).reshape(len(packed), -1)


def _half_steps(d: Floats, steps: Indices, unit: float) -> Floats:
    """d · (0.5 + steps) · unit: scales between 0.5 and 15.5 units."""
    return d * (np.float32(0.5) + steps.astype(np.float32)) * np.float32(unit)


def _signs(masks: Bytes) -> Floats:
    """One bit a value, set for minus: uint8 [n, k] → ±1 float32 [n, 8 k]."""
    return 1 - 2 * bits(masks).astype(np.float32)


def _packed_signs(packed: Indices) -> Floats:
    """Four indices of sign masks in the low 28 bits of each u32: [n, k] → ±1 float32 [n, 32 k]."""
    index = (packed[:, :, None] >> np.array((0, 7, 14, 21), np.uint32)) & 127
    return _signs(SIGN_MASKS[index].reshape(len(packed), -1))


def _shift(bit: Indices) -> Floats:
    """±0.125, minus where the bit is set."""
    return np.where(bit & 1, np.float32(-IQ1_DELTA), np.float32(IQ1_DELTA))


def _scattered_half(packed: Indices) -> Floats:
    """The float16 of IQ1_M: its nibbles are the top ones of four words, lowest first; [n, 4] → [n, 1]."""
    nibbles = (packed >> 12) << np.array((0, 4, 8, 12), np.uint16)
    whole = np.bitwise_or.reduce(nibbles, axis=1, keepdims=True).astype("<u2")
    return whole.view("<f2").astype(np.float32)
