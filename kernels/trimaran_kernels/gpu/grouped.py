"""The experts that a GPU holds, for a batch: y = Σ_j weight_j · down_j(silu(gate_j x) · up_j x)."""

from __future__ import annotations

import torch
from torch import Tensor

from trimaran_kernels.gpu.grouped_gemm import grouped_gemm
from trimaran_kernels.gpu.grouped_gemv import grouped_gemv
from trimaran_kernels.gpu.grouped_stack import ExpertStack

PLACE_BY_PLACE = 8
"""Up to so many tokens each place reads its expert's weights by itself; beyond, places of an expert share."""


def grouped_experts(
    x: Tensor, ids: Tensor, weights: Tensor, slots: Tensor, stack: ExpertStack, out: Tensor | None = None
) -> Tensor:
    """Each token through those of its experts that have a slot.

    The shapes of everything made depend on the arguments' shapes alone, nothing waits for the device, and
    sums have a fixed order: same input, same bits. A token's NaN stays in its own row.

    Args:
        x: [T, hidden] float16, bfloat16 or float32.
        ids: int32 [T, top_k] experts; -1 skips a place, and so does an expert without a slot, whatever its
            weight.
        weights: float32 [T, top_k].
        slots: int32 [experts], the slot of each expert or -1.
        stack: the weights. Beyond `PLACE_BY_PLACE` tokens they are rounded to x's type, and so are the
            activations between the two halves.
        out: float32 [T, hidden], to be added to; by default a fresh one.

    Returns:
        float32 [T, hidden]: exactly 0 for a token without resident experts, if `out` was not given.
    """
    add = out is not None
    if out is None:
        out = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    if len(x) == 0:
        return out
    compute = grouped_gemv if len(x) <= PLACE_BY_PLACE else grouped_gemm
    compute(x.contiguous(), ids.contiguous(), weights.contiguous(), slots, stack, out, add=add)
    return out
