"""Random weights of any type.

Types that can be read but not written get random indices under scales of a chosen size.
"""

from __future__ import annotations

from math import prod

import numpy as np
from numpy.typing import NDArray

from trimaran.gguf.dequant import dequantize
from trimaran.gguf.quantize import QUANTIZABLE, quantize
from trimaran.gguf.types import GGMLType

Bytes = NDArray[np.uint8]

SCALE_SPREAD = 0.1
CALIBRATION_BLOCKS = 64

_SCATTERED_AT = 48  # IQ1_M keeps its scale's nibbles on top of the four words from here on


def random_blocks(kind: GGMLType, shape: tuple[int, ...], std: float, seed: int | tuple[int, ...]) -> Bytes:
    """Random bytes [nbytes] of any type, which decode to finite values of about this standard deviation."""
    rng = np.random.default_rng(seed)
    if kind in QUANTIZABLE:
        return quantize(kind, rng.standard_normal(shape, np.float32) * np.float32(std))
    n_blocks = prod(shape[:-1]) * kind.row_bytes(shape[-1]) // kind.type_size
    blocks = rng.integers(0, 256, (n_blocks, kind.type_size), np.uint8)
    scales = rng.normal(1.0, SCALE_SPREAD, n_blocks) * (std / _unit_std(kind))
    _set_scales(kind, blocks, scales.astype(np.float16))
    return blocks.reshape(-1)


def _unit_std(kind: GGMLType) -> float:
    """Standard deviation of random blocks whose scale is 1."""
    blocks = np.random.default_rng(0).integers(0, 256, (CALIBRATION_BLOCKS, kind.type_size), np.uint8)
    _set_scales(kind, blocks, np.ones(CALIBRATION_BLOCKS, np.float16))
    return float(dequantize(kind, blocks.reshape(-1), (CALIBRATION_BLOCKS, kind.block_size)).std())


def _set_scales(kind: GGMLType, blocks: Bytes, scales: NDArray[np.float16]) -> None:
    if kind is not GGMLType.IQ1_M:
        blocks[:, :2] = scales[:, None].view(np.uint8)
        return
    nibbles = (scales.view(np.uint16)[:, None] >> np.array((0, 4, 8, 12), np.uint16)) & 15
    tops = blocks[:, _SCATTERED_AT + 1 :: 2]
    tops[:] = (tops & 15) | (nibbles << 4).astype(np.uint8)
