"""Residual addition and root-mean-square normalisation in one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_WIDEST_IN_FOUR_WARPS = 2048


@triton.jit(do_not_specialize=["eps"])
def norm_kernel(
    x, delta, weight, total, out, eps, width, x_stride, delta_stride, ADD: tl.constexpr, BLOCK: tl.constexpr
):
    """One row: total = x + delta, rounded to its type; out = total / rms(total) · weight."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    there = i < width
    value = tl.load(x + row * x_stride + i, mask=there, other=0.0)
    if ADD:
        moved = tl.load(delta + row * delta_stride + i, mask=there, other=0.0)
        value = (value.to(tl.float32) + moved.to(tl.float32)).to(value.dtype)
        tl.store(total + row * width + i, value, mask=there)
    wide = value.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, 0) / width + eps)
    normed = wide * scale * tl.load(weight + i, mask=there, other=0.0)
    tl.store(out + row * width + i, normed.to(out.dtype.element_ty), mask=there)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) · weight over the last dimension, computed in float32.

    Args:
        x: [T, n], rows may lie apart.
        weight: [n] float32.
        eps: added to the mean of squares.

    Returns:
        [T, n] in x's type, contiguous.
    """
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch(x, None, weight, eps, out, out)
    return out


def add_rms_norm(x: Tensor, delta: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x + delta, and the norm of that.

    Args:
        x, delta: [T, n] of one type, rows may lie apart; left as they are.
        weight, eps: as of `rms_norm`.

    Returns:
        Both [T, n] in x's type, contiguous; the sum is rounded before it is normed, as if by two calls.
    """
    total, out = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for _ in range(2))
    _launch(x, delta, weight, eps, total, out)
    return total, out


def _launch(x: Tensor, delta: Tensor | None, weight: Tensor, eps: float, total: Tensor, out: Tensor) -> None:
    n_rows, width = x.shape
    if n_rows == 0:
        return
    x = x if x.stride(1) == 1 else x.contiguous()
    other = x if delta is None else delta if delta.stride(1) == 1 else delta.contiguous()
    norm_kernel[(n_rows,)](
        x,
        other,
        weight,
        total,
        out,
        eps,
        width,
        x.stride(0),
        other.stride(0),
        ADD=delta is not None,
        BLOCK=triton.next_power_of_2(width),
        num_warps=4 if width <= _WIDEST_IN_FOUR_WARPS else 8,
    )
