"""What the kernels must compute, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import silu

from trimaran_kernels.gpu.matrix import QuantMatrix


def expand_reference(matrix: QuantMatrix) -> Tensor:
    """All weights of a matrix, [N, K] float32."""
    layout, planes = matrix.layout, matrix.planes
    codes = _codes(matrix).float()
    weights = planes.levels[codes.long()] if layout.table else codes - layout.offset
    scales = planes.supers.float().repeat_interleave(layout.block, 1)
    if layout.sub_scales:
        scales = scales * planes.scales.float().repeat_interleave(layout.group, 1)
    weights = weights * scales
    if layout.mins:
        least = planes.super_mins.float().repeat_interleave(layout.block, 1)
        weights = weights - least * planes.mins.float().repeat_interleave(layout.group, 1)
    return weights


def linear_reference(x: Tensor, matrix: QuantMatrix, up: QuantMatrix | None = None) -> Tensor:
    """x: [T, K] → [T, N] float32: x·Wᵀ, or with `up` silu(x·Wᵀ) × (x·Wupᵀ)."""
    y = x.float() @ expand_reference(matrix).T
    return y if up is None else silu(y) * (x.float() @ expand_reference(up).T)


def _codes(matrix: QuantMatrix) -> Tensor:
    """The integer codes in the order of their columns, [N, K]."""
    layout, codes = matrix.layout, matrix.planes.codes
    rows, width = matrix.shape
    if layout.bits == 8:
        return codes
    runs = codes.view(rows, -1, layout.half)
    low = torch.stack((runs & 15, runs >> 4), 2).view(rows, width).int()
    if layout.bits == 4:
        return low
    # 32 bytes of high bits serve 8 runs of 32 columns one bit each, or 4 runs two bits each.
    step = layout.bits - 4
    shifts = torch.arange(0, 8, step, dtype=torch.uint8, device=codes.device)
    bits = matrix.planes.high.view(rows, -1, 1, 32) >> shifts[:, None] & (1 << step) - 1
    return low + (bits.view(rows, width).int() << 4)
