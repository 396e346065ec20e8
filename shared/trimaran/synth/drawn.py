"""Random blocks as fast as random numbers come: nothing is quantised, the bits themselves are drawn.

A block's scales are chosen so that its values have the wanted deviation and no mean: a matrix with a mean
would push every activation the same way, layer after layer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod, sqrt

import numpy as np
from numpy.typing import NDArray

from trimaran.gguf.types import GGMLType
from trimaran.synth.blocks import random_blocks

Bytes = NDArray[np.uint8]
Draw = Callable[[np.random.Generator, int, float], Bytes]
"""(source, number of blocks, standard deviation) → uint8 [blocks, block bytes]."""

LEAST_SCALE, SCALES = 40, 64
"""Sub-block scales of six bits are drawn from the upper end of what they can be."""


def draw_blocks(kind: GGMLType, shape: tuple[int, ...], std: float, seed: tuple[int, ...]) -> Bytes:
    """Random bytes [nbytes] of a tensor whose values have mean 0 and about this standard deviation.

    Types without a fast way are drawn by `random_blocks`, which gives the same kind of values.
    """
    draw = _DRAWS.get(kind)
    if draw is None:
        return random_blocks(kind, shape, std, seed)
    n_blocks = prod(shape[:-1]) * kind.row_bytes(shape[-1]) // kind.type_size
    return draw(np.random.Generator(np.random.SFC64(seed)), n_blocks, std).reshape(-1)


def _random_bytes(rng: np.random.Generator, n_blocks: int, size: int) -> Bytes:
    return np.frombuffer(bytearray(rng.bytes(n_blocks * size)), np.uint8).reshape(n_blocks, size)


def _uniform_std(levels: int) -> float:
    """Of the whole numbers 0 … levels - 1."""
    return sqrt((levels**2 - 1) / 12)


def _plain(rng: np.random.Generator, n_blocks: int, std: float, *, size: int, levels: int) -> Bytes:
    """Q4_0, Q5_0, Q8_0: one scale before numbers around -1/2, whose sign so has to be random."""
    blocks = _random_bytes(rng, n_blocks, size)
    signs = np.where(blocks[:, -1] & 1, 1.0, -1.0)
    blocks[:, :2] = (signs * (std / _uniform_std(levels))).astype(np.float16)[:, None].view(np.uint8)
    return blocks


def _q6_k(rng: np.random.Generator, n_blocks: int, std: float) -> Bytes:
    """Sixteen scales of eight bits with random signs, then the block's own."""
    blocks = _random_bytes(rng, n_blocks, GGMLType.Q6_K.type_size)
    scales = blocks[:, 192:208].view(np.int8)
    magnitudes = LEAST_SCALE + (scales & 0x1F)
    scales[:] = np.where(scales < 0, -magnitudes, magnitudes)
    largest = np.arange(LEAST_SCALE, LEAST_SCALE + 32)
    _put_half(blocks, 208, std / (_uniform_std(64) * float(np.sqrt((largest**2.0).mean()))))
    return blocks


def _offset_k(rng: np.random.Generator, n_blocks: int, std: float, *, kind: GGMLType, levels: int) -> Bytes:
    """Q4_K, Q5_K: each run's offset equals its scale, and the factor of the offsets centres the numbers."""
    blocks = _random_bytes(rng, n_blocks, kind.type_size)
    scales = rng.integers(LEAST_SCALE, SCALES, (n_blocks, 8), np.uint8)
    low, high = scales[:, :4], scales[:, 4:]
    blocks[:, 4:8] = blocks[:, 8:12] = low | (high >> 4) << 6
    blocks[:, 12:16] = high & 15 | (high & 15) << 4
    mean_square = float((np.arange(LEAST_SCALE, SCALES) ** 2.0).mean())
    scale = std / (_uniform_std(levels) * sqrt(mean_square))
    _put_half(blocks, 0, scale)
    _put_half(blocks, 2, scale * (levels - 1) / 2)
    return blocks


def _put_half(blocks: Bytes, offset: int, value: float) -> None:
    blocks[:, offset : offset + 2] = np.array([value], np.float16).view(np.uint8)


_DRAWS: dict[GGMLType, Draw] = {
    GGMLType.Q4_0: partial(_plain, size=18, levels=16),
    GGMLType.Q5_0: partial(_plain, size=22, levels=32),
    GGMLType.Q8_0: partial(_plain, size=34, levels=256),
    GGMLType.Q4_K: partial(_offset_k, kind=GGMLType.Q4_K, levels=16),
    GGMLType.Q5_K: partial(_offset_k, kind=GGMLType.Q5_K, levels=32),
    GGMLType.Q6_K: _q6_k,
}
