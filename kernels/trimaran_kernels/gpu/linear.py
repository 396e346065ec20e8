"""The way of a batch through a quantised matrix, by its number of tokens."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import silu

from trimaran_kernels.gpu.expand import expand_rows
from trimaran_kernels.gpu.few_tokens import MOST_TOKENS, few_tokens
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

    Those of long batches are torch's: see to its `allow_bf16_reduced_precision_reduction`, which is on.

    Args:
        x: float16, bfloat16 or float32, on the matrix's device.
        matrix: W, [N, K].
    """
    x = x.contiguous()
    kernel = choose_kernel(len(x), x.dtype)
    return _expanded(x, matrix) if kernel is None else kernel(x, matrix)


def quant_swiglu(x: Tensor, gate: QuantMatrix, up: QuantMatrix) -> Tensor:
    """x: [T, K] → silu(x·Wgateᵀ) × (x·Wupᵀ) [T, N] in x's type; fused if both [N, K] have one type."""
    x = x.contiguous()
    kernel = choose_kernel(len(x), x.dtype)
    if kernel is None or gate.layout != up.layout:
        return silu(quant_linear(x, gate)).mul_(quant_linear(x, up))
    return kernel(x, gate, up)


def choose_kernel(n_tokens: int, dtype: torch.dtype) -> Callable[..., Tensor] | None:
    """What multiplies a batch by a matrix, or by two with SwiGLU between; None: decode rows first.

    By instructions a weight (docs/kernels/gpu.md): fixed point takes least for one token, and most of that
    again for each further one; from two on, codes on tensor cores take less. float32 is the reference's type
    and keeps all of its bits.
    """
    if not 0 < n_tokens <= TILED_TOKENS:
        return None
    if dtype == torch.float32:
        return gemv if n_tokens == 1 else gemm
    if n_tokens == 1:
        return fixed_gemv
    return few_tokens if n_tokens <= MOST_TOKENS else gemm


def _expanded(x: Tensor, matrix: QuantMatrix) -> Tensor:
    n_rows, width = matrix.shape
    step = max(1, EXPANDED_BYTES // (width * x.element_size()))
    out = torch.empty(len(x), n_rows, dtype=x.dtype, device=x.device)
    for start in range(0, n_rows if len(x) else 0, step):
        rows = slice(start, min(start + step, n_rows))
        out[:, rows] = x @ expand_rows(matrix, rows, x.dtype).T
    return out
