"""The way of a batch through a quantised matrix, by its number of tokens."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import silu

from trimaran_kernels.gpu.expand import expand_rows
from trimaran_kernels.gpu.gemm import gemm
from trimaran_kernels.gpu.gemv import gemv
from trimaran_kernels.gpu.gemv_fixed import fixed_gemv
from trimaran_kernels.gpu.matrix import QuantMatrix

TILED_TOKENS = 256
"""Up to so many tokens tiles are decoded in registers; beyond, rows are decoded to memory and multiplied."""

EXPANDED_BYTES = 64 << 20
"""Rows are decoded in pieces of at most this size: it bounds the workspace, and fits the larger L2 caches."""


def quant_linear(x: Tensor, matrix: QuantMatrix) -> Tensor:
    """x: [T, K] → x·Wᵀ [T, N] in x's type; sums are float32.

    Args:
        x: float16, bfloat16 or float32, on the matrix's device.
        matrix: W, [N, K].
    """
    x = x.contiguous()
    if len(x) == 1:
        return _one_token(x, matrix)
    return gemm(x, matrix) if 0 < len(x) <= TILED_TOKENS else _expanded(x, matrix)


def quant_swiglu(x: Tensor, gate: QuantMatrix, up: QuantMatrix) -> Tensor:
    """x: [T, K] → silu(x·Wgateᵀ) × (x·Wupᵀ) [T, N] in x's type; fused if both [N, K] have one type."""
    x = x.contiguous()
    if gate.layout != up.layout or not 0 < len(x) <= TILED_TOKENS:
        return silu(quant_linear(x, gate)).mul_(quant_linear(x, up))
    return _one_token(x, gate, up) if len(x) == 1 else gemm(x, gate, up)


def _one_token(x: Tensor, matrix: QuantMatrix, up: QuantMatrix | None = None) -> Tensor:
    """16-bit floats fit into fixed point; float32 is the reference's type and keeps all of its bits."""
    return gemv(x, matrix, up) if x.dtype == torch.float32 else fixed_gemv(x, matrix, up)


def _expanded(x: Tensor, matrix: QuantMatrix) -> Tensor:
    n_rows, width = matrix.shape
    step = max(1, EXPANDED_BYTES // (width * x.element_size()))
    out = torch.empty(len(x), n_rows, dtype=x.dtype, device=x.device)
    for start in range(0, n_rows if len(x) else 0, step):
        rows = slice(start, min(start + step, n_rows))
        out[:, rows] = x @ expand_rows(matrix, rows, x.dtype).T
    return out
