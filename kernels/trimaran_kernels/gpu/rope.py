"""Rotation of the queries' pairs, read from and written to wherever they lie."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def rotate_kernel(
    x,
    cos,
    sin,
    out,
    n_heads,
    x_stride,
    x_head_stride,
    out_stride,
    out_head_stride,
    HEADS: tl.constexpr,
    PAIRS: tl.constexpr,
):
    """HEADS heads of one token: pair (a, b) becomes (a cos − b sin, b cos + a sin)."""
    row = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * HEADS + tl.arange(0, HEADS))[:, None]
    pair = tl.arange(0, PAIRS)
    c = tl.load(cos + row * PAIRS + pair)[None, :]
    s = tl.load(sin + row * PAIRS + pair)[None, :]
    there = (head < n_heads)[:, :, None]
    both = 2 * pair[None, :, None] + tl.arange(0, 2)[None, None, :]
    values = tl.load(x + row * x_stride + head[:, :, None] * x_head_stride + both, mask=there, other=0.0)
    even, odd = tl.split(values.to(tl.float32))
    turned = tl.join(even * c - odd * s, odd * c + even * s)
    target = out + row * out_stride + head[:, :, None] * out_head_stride + both
    tl.store(target, turned.to(out.dtype.element_ty), mask=there)


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor | None = None) -> Tensor:
    """Rotate interleaved pairs.

    Args:
        x: [T, heads, dim], the last dimension contiguous; dim is a power of two.
        cos, sin: [T, dim / 2] float32, contiguous.
        out: where the result goes, in x's shape, its last dimension contiguous; by default a new tensor.

    Returns:
        `out`.
    """
    n_rows, n_heads, dim = x.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device) if out is None else out
    heads = min(32, triton.next_power_of_2(n_heads))
    if n_rows:
        rotate_kernel[(n_rows, triton.cdiv(n_heads, heads))](
            x,
            cos,
            sin,
            out,
            n_heads,
            x.stride(0),
            x.stride(1),
            out.stride(0),
            out.stride(1),
            HEADS=heads,
            PAIRS=dim // 2,
            num_warps=4,
        )
    return out
