"""Quantisation to the types with super-blocks of 256 values (layouts: see dequant_k and dequant_iq).

The groups' scales are found first, then rounded to the few bits that the format has for them, and at last
the values are rounded under the rounded scales. Every function takes float32 [n, 256] of finite values within
the range of float16 and returns uint8 [n, type_size].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trimaran.gguf import scale_search
from trimaran.gguf.iq_grids import IQ4_LEVELS
from trimaran.gguf.quantize_blocks import half_bytes, inverse
from trimaran.gguf.unpack import BITS, CRUMBS, NIBBLES

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

_LEVELS = np.array(IQ4_LEVELS, np.float32)


@dataclass(frozen=True)
class _Affine:
    """x ≈ d · scales · q - dmin · minima, by groups; d and dmin as bytes of float16."""

    d: Bytes
    dmin: Bytes
    scales: Bytes
    minima: Bytes
    q: Bytes


def q2_k(x: Floats) -> Bytes:
    """Groups of 16; scales and minima of 4 bits, values of 2."""
    parts = _affine(x, group=16, most=3, scale_most=15)
    packed = parts.scales | (parts.minima << np.uint8(4))
    return np.concatenate([packed, merge_planes(parts.q, CRUMBS, 32), parts.d, parts.dmin], axis=1)


def q4_k(x: Floats) -> Bytes:
    """Groups of 32; scales and minima of 6 bits, values of 4."""
    parts = _affine(x, group=32, most=15, scale_most=63)
    pairs = pack_pairs(parts.scales, parts.minima)
    return np.concatenate([parts.d, parts.dmin, pairs, merge_planes(parts.q, NIBBLES, 32)], axis=1)


def q5_k(x: Floats) -> Bytes:
    """Groups of 32; scales and minima of 6 bits, values of 5."""
    parts = _affine(x, group=32, most=31, scale_most=63)
    pairs = pack_pairs(parts.scales, parts.minima)
    high = merge_planes(parts.q >> np.uint8(4), BITS, 32)
    low = merge_planes(parts.q & np.uint8(15), NIBBLES, 32)
    return np.concatenate([parts.d, parts.dmin, pairs, high, low], axis=1)


def q3_k(x: Floats) -> Bytes:
    """Groups of 16; scales of 6 bits, values of 3, both signed by an offset."""
    d, scales, q = _symmetric(x, half=4, scale_half=32)
    values, codes = (q + 4).astype(np.uint8), (scales + 32).astype(np.uint8)
    low_scales = merge_planes(codes & np.uint8(15), NIBBLES, 8)
    high_scales = merge_planes(codes >> np.uint8(4), CRUMBS, 4)
    high = merge_planes(values >> np.uint8(2), BITS, 32)
    low = merge_planes(values & np.uint8(3), CRUMBS, 32)
    return np.concatenate([high, low, low_scales, high_scales, d], axis=1)


def q6_k(x: Floats) -> Bytes:
    """Groups of 16; scales of 8 bits, values of 6."""
    d, scales, q = _symmetric(x, half=32, scale_half=128)
    values = (q + 32).astype(np.uint8)
    low = merge_planes(values & np.uint8(15), NIBBLES, 64)
    high = merge_planes(values >> np.uint8(4), CRUMBS, 32)
    return np.concatenate([low, high, scales.astype(np.int8).view(np.uint8), d], axis=1)


def iq4_xs(x: Floats) -> Bytes:
    """Groups of 32; scales of 6 bits, values out of sixteen levels."""
    groups = x.reshape(-1, 32)
    best = scale_search.to_levels(groups, _LEVELS).reshape(-1, 8)
    d, scales = _quantise_scales(best, half=32)
    q = scale_search.nearest(groups * inverse(_effective(d, scales)), _LEVELS).reshape(len(x), 256)
    codes = (scales + 32).astype(np.uint8)
    high = merge_planes(codes >> np.uint8(4), CRUMBS, 1)
    low = merge_planes(codes & np.uint8(15), NIBBLES, 1)
    return np.concatenate([d, high, low, merge_planes(q, NIBBLES, 16)], axis=1)


def iq4_nl(x: Floats) -> Bytes:
    """Blocks of 32, [n, 32] → [n, 18]: one scale, values out of sixteen levels."""
    d = half_bytes(scale_search.to_levels(x, _LEVELS)[:, None])
    q = scale_search.nearest(x * inverse(_as_float(d)), _LEVELS)
    return np.concatenate([d, merge_planes(q, NIBBLES, 16)], axis=1)


def merge_planes(values: Bytes, shifts: Sequence[int], group: int) -> Bytes:
    """The reverse of `unpack.planes`: small values [n, k] → bytes [n, k / len(shifts)]."""
    runs = values.reshape(len(values), -1, len(shifts), group) << np.array(shifts, np.uint8)[:, None]
    merged: Bytes = np.bitwise_or.reduce(runs, axis=2)
    return merged.reshape(len(values), -1)


def pack_pairs(scales: Bytes, minima: Bytes) -> Bytes:
    """The reverse of `dequant_k.unpack_pairs`: two uint8 [n, 8] of 6 bits → uint8 [n, 12]."""
    high, two = np.uint8(0x30), np.uint8(2)
    first = scales[:, :4] | ((scales[:, 4:] & high) << two)
    second = minima[:, :4] | ((minima[:, 4:] & high) << two)
    third = (scales[:, 4:] & np.uint8(15)) | (minima[:, 4:] << np.uint8(4))
    return np.concatenate([first, second, third], axis=1)


def _affine(x: Floats, group: int, most: int, scale_most: int) -> _Affine:
    groups = x.reshape(-1, group)
    best_scales, best_lows = scale_search.affine(groups, most)
    d, scales = _quantise_positive(best_scales.reshape(len(x), -1), scale_most)
    dmin, minima = _quantise_positive(best_lows.reshape(len(x), -1), scale_most)
    raised = groups + _effective(dmin, minima)
    q = np.rint(raised * inverse(_effective(d, scales))).clip(0, most).astype(np.uint8)
    return _Affine(d, dmin, scales.astype(np.uint8), minima.astype(np.uint8), q.reshape(len(x), -1))


def _symmetric(x: Floats, half: int, scale_half: int) -> tuple[Bytes, Floats, Floats]:
    """Groups of 16: d as bytes, scales [n, 16] in ±scale_half, values [n, 256] in -half..half-1."""
    groups = x.reshape(-1, 16)
    best = scale_search.symmetric(groups, half).reshape(len(x), 16)
    d, scales = _quantise_scales(best, scale_half)
    q = np.rint(groups * inverse(_effective(d, scales))).clip(-half, half - 1)
    return d, scales, q.reshape(len(x), -1)


def _quantise_positive(scales: Floats, most: int) -> tuple[Bytes, Floats]:
    """Scales [n, k] ≈ d · (0..most): d as bytes of float16 [n, 2], and the integers as floats."""
    d = half_bytes(scales.max(axis=1, keepdims=True) / np.float32(most))
    return d, np.rint(scales * inverse(_as_float(d))).clip(0, most)


def _quantise_scales(scales: Floats, half: int) -> tuple[Bytes, Floats]:
    """Signed scales [n, k] ≈ d · (-half..half-1), the extreme one at -half."""
    d = half_bytes(scale_search.signed_extreme(scales)[:, None] / np.float32(-half))
    return d, np.rint(scales * inverse(_as_float(d))).clip(-half, half - 1)


def _effective(d: Bytes, scales: Floats) -> Floats:
    """What a reader multiplies a group's values with: [n · k, 1]."""
    return (_as_float(d) * scales).reshape(-1, 1)


def _as_float(d: Bytes) -> Floats:
    return d.view("<f2").astype(np.float32)
