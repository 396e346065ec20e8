"""The K types: super-blocks of 256 values in groups of 16 or 32, whose scales are quantised themselves.

Every function takes blocks uint8 [n, type_size] and returns float32 [n, 256].
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trimaran.gguf.unpack import BITS, CRUMBS, NIBBLES, Bytes, Floats, halves, planes, spread


def q2_k(blocks: Bytes) -> Floats:
    """scales+minima u4[16] | q u2[256] | d f16 | dmin f16."""
    packed = blocks[:, :16]
    scales = halves(blocks, 80) * (packed & np.uint8(15)).astype(np.float32)
    minima = halves(blocks, 82) * (packed >> np.uint8(4)).astype(np.float32)
    q = planes(blocks[:, 16:80], CRUMBS, 32).astype(np.float32)
    return spread(scales, 16) * q - spread(minima, 16)


def q3_k(blocks: Bytes) -> Floats:
    """high bits u1[256] | low bits u2[256] | scales u6[16] - 32 | d f16; q = low + 4 · high - 4."""
    low = planes(blocks[:, 32:96], CRUMBS, 32)
    high = planes(blocks[:, :32], BITS, 32)
    q = (low | (high << np.uint8(2))).astype(np.float32) - 4
    scales = halves(blocks, 108) * (_six_bit_scales(blocks[:, 96:108]).astype(np.float32) - 32)
    return spread(scales, 16) * q


def q4_k(blocks: Bytes) -> Floats:
    """d f16 | dmin f16 | scales and minima u6[8 + 8] | q u4[256]."""
    scales, minima = _scales_and_minima(blocks)
    q = planes(blocks[:, 16:], NIBBLES, 32).astype(np.float32)
    return spread(scales, 32) * q - spread(minima, 32)


def q5_k(blocks: Bytes) -> Floats:
    """d f16 | dmin f16 | scales and minima u6[8 + 8] | high bits u1[256] | low bits u4[256]."""
    scales, minima = _scales_and_minima(blocks)
    high = planes(blocks[:, 16:48], BITS, 32)
    q = (planes(blocks[:, 48:], NIBBLES, 32) | (high << np.uint8(4))).astype(np.float32)
    return spread(scales, 32) * q - spread(minima, 32)


def q6_k(blocks: Bytes) -> Floats:
    """low bits u4[256] | high bits u2[256] | scales i8[16] | d f16; q = value - 32."""
    low = planes(blocks[:, :128], NIBBLES, 64)
    high = planes(blocks[:, 128:192], CRUMBS, 32)
    q = (low | (high << np.uint8(4))).astype(np.float32) - 32
    scales = halves(blocks, 208) * blocks[:, 192:208].view(np.int8).astype(np.float32)
    return spread(scales, 16) * q


def unpack_pairs(packed: Bytes) -> tuple[Bytes, Bytes]:
    """The 6-bit scales and minima of Q4_K and Q5_K: uint8 [n, 12] → two uint8 [n, 8].

    The first four of each lie in the low bits of bytes 0-3 and 4-7, the last four in the nibbles of bytes
    8-11, with their two highest bits on top of bytes 0-3 and 4-7.
    """
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    high = np.uint8(0x30)
    scales = np.concatenate(
        [first & np.uint8(63), (third & np.uint8(15)) | ((first >> np.uint8(2)) & high)], 1
    )
    minima = np.concatenate(
        [second & np.uint8(63), (third >> np.uint8(4)) | ((second >> np.uint8(2)) & high)], 1
    )
    return scales, minima


def _scales_and_minima(blocks: Bytes) -> tuple[Floats, Floats]:
    scales, minima = unpack_pairs(blocks[:, 4:16])
    return halves(blocks, 0) * scales.astype(np.float32), halves(blocks, 2) * minima.astype(np.float32)


def _six_bit_scales(packed: Bytes) -> NDArray[np.uint8]:
    """The scales of Q3_K: low nibbles in bytes 0-7, two high bits in bytes 8-11; [n, 12] → [n, 16]."""
    low = planes(packed[:, :8], NIBBLES, 8)
    high = planes(packed[:, 8:], CRUMBS, 4)
    return low | (high << np.uint8(4))
