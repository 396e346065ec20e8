"""From a tensor of the model file to a matrix in GPU memory."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from trimaran.gguf import GGMLType
from trimaran.gpu_weights import gpu_type

import trimaran_kernels
from trimaran_kernels.gpu.matrix import QuantMatrix

_ROWS_AT_A_TIME = 1 << 22
"""Weights that are expanded at once when a type is converted: 16 MiB of float32."""


def load_matrix(
    type_: GGMLType, raw: NDArray[np.uint8], shape: tuple[int, int], device: torch.device
) -> QuantMatrix:
    """Bring a quantised matrix to the GPU, in the type that `gpu_type` says.

    It is split into planes on the CPU, so that the device never holds more than the planes.

    Args:
        type_: a quantised type.
        raw: its bytes in the file.
        shape: [N, K].
        device: where it goes.
    """
    target = gpu_type(type_)
    blocks = torch.from_numpy(np.array(raw)) if type_ is target else _to_q8_0(type_, raw, shape)
    matrix = QuantMatrix.from_blocks(target, blocks, shape)
    return matrix if device.type == "cpu" else matrix.to(device)


def _to_q8_0(type_: GGMLType, raw: NDArray[np.uint8], shape: tuple[int, int]) -> Tensor:
    """Blocks of Q8_0, uint8, from another type's."""
    rows, columns = shape
    row_bytes = type_.row_bytes(columns)
    step = max(1, _ROWS_AT_A_TIME // columns)
    pieces = []
    for start in range(0, rows, step):
        part = raw[start * row_bytes : (start + step) * row_bytes]
        values = trimaran_kernels.dequantize(int(type_), part, len(part) // row_bytes * columns)
        exact = _q5_0_scales(part) if type_ is GGMLType.Q5_0 else None
        pieces.append(encode_q8_0(torch.from_numpy(values), exact))
    return torch.cat(pieces)


def _q5_0_scales(raw: NDArray[np.uint8]) -> Tensor:
    """Q5_0's weights are (code - 16) × scale, with the same blocks as Q8_0: its scales fit as they are."""
    blocks = raw.reshape(-1, GGMLType.Q5_0.type_size)
    return torch.from_numpy(np.ascontiguousarray(blocks[:, :2]).view("<f2"))


def encode_q8_0(values: Tensor, scales: Tensor | None = None) -> Tensor:
    """The nearest Q8_0 weights.

    Args:
        values: float32, a multiple of 32 of them.
        scales: [blocks, 1] float16; by default those that use the whole range of codes.

    Returns:
        uint8 [blocks × 34].
    """
    blocks = values.view(-1, GGMLType.Q8_0.block_size)
    if scales is None:
        scales = (blocks.abs().amax(1, keepdim=True) / 127).to(torch.float16)
    divisor = torch.where(scales == 0, math.inf, scales.float())
    codes = (blocks / divisor).round().clamp(-127, 127).to(torch.int8)
    return torch.cat((scales.view(torch.uint8), codes.view(torch.uint8)), 1).flatten()
