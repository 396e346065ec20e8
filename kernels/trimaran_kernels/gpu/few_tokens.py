"""2 to 16 tokens of 16-bit floats through a quantised matrix, or through two with SwiGLU between.

The weights are read once, and their codes are multiplied as they are: any code is exact as a 16-bit float, so
tensor cores multiply codes with tokens, and a group's scale and min meet sums of 16 or 32 columns. A code
costs about one instruction to become a float, its scale a fraction of one. That is what matters: a GPU reads
4-bit weights as fast as it runs six instructions for each.

What a token gets does not depend on the others of its batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from trimaran_kernels.gpu.decode import low_columns
from trimaran_kernels.gpu.matrix import QuantMatrix
from trimaran_kernels.gpu.unpack import choose_unpacking, unpack_bits, unpack_codes

MOST_TOKENS = 16

UNITS = tl.constexpr(4)
"""Units of codes that a step reads of each row; one a warp, so that each sums products of its own."""

_MERGE_COLUMNS = 512


@dataclass(frozen=True)
class Plan:
    """How a multiplication is cut: rows of a program, its tokens, steps along K of each split, splits."""

    rows: int
    tokens: int
    steps: int
    splits: int


@triton.jit(do_not_specialize=["n_tokens", "n_rows"])  # or each batch size is compiled again
def few_kernel(
    x,
    gate,
    up,
    out,
    n_tokens,
    n_rows,
    n_units,
    units_per_split,
    L: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    DUAL: tl.constexpr,
    SPLIT: tl.constexpr,
    U: tl.constexpr,
):
    """out[t, n] = Σ gate[n, k]·x[t, k]; with DUAL silu of that times Σ up[n, k]·x[t, k].

    With SPLIT the plain sums over the split's part of k: out[split, t, n], or [split, 2, t, n] if DUAL.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    rows = tl.minimum(row, n_rows - 1).to(tl.int64)
    token = tl.arange(0, TOKENS)
    tokens = x + token.to(tl.int64)[None, None, :] * (n_units * (2 * L.unit))
    total = tl.zeros([UNITS, ROWS, TOKENS], tl.float32)
    second = tl.zeros([UNITS, ROWS, TOKENS], tl.float32)
    first = tl.program_id(1) * units_per_split
    last = min(first + units_per_split, n_units)
    for start in range(first, last, UNITS):
        unit = start + tl.arange(0, UNITS)
        units = tl.minimum(unit, n_units - 1)
        at = low_columns(units, L)[:, None, None] + tl.arange(0, L.unit)[None, :, None]
        there = (unit < last)[:, None, None] & (token < n_tokens)[None, None, :]
        low = tl.load(tokens + at, mask=there, other=0.0)
        high = tl.load(tokens + at + L.half, mask=there, other=0.0)
        total = _add_products(total, gate, rows, units, n_units, low, high, L, U)
        if DUAL:
            second = _add_products(second, up, rows, units, n_units, low, high, L, U)
    y = tl.sum(total, 0)
    split = tl.program_id(1).to(tl.int64)
    target = token.to(tl.int64)[None, :] * n_rows + row[:, None]
    there = (token < n_tokens)[None, :] & (row < n_rows)[:, None]
    if SPLIT:
        size = n_tokens.to(tl.int64) * n_rows
        parts: tl.constexpr = 2 if DUAL else 1
        tl.store(out + split * parts * size + target, y, mask=there)
        if DUAL:
            tl.store(out + (split * parts + 1) * size + target, tl.sum(second, 0), mask=there)
    else:
        if DUAL:
            y = y / (1.0 + tl.exp(-y)) * tl.sum(second, 0)
        tl.store(out + target, y.to(out.dtype.element_ty), mask=there)


@triton.jit
def _add_products(total, planes, rows, units, n_units, x_low, x_high, L: tl.constexpr, U: tl.constexpr):
    """total [U, R, T] + each unit's weights times x_low and x_high [U, L.unit, T]."""
    low, high = unpack_codes(planes, rows, units, n_units, x_low, L, U)
    y = tl.dot(low, x_low, input_precision="ieee")
    columns = low_columns(units, L)[:, None]
    n_columns = n_units * (2 * L.unit)
    block = rows[None, :] * (n_columns // L.block) + columns // L.block
    group = rows[None, :] * (n_columns // L.group) + columns // L.group
    scale = tl.load(planes.supers + block).to(tl.float32)
    if L.half < L.group:  # low and high columns have one scale
        y = tl.dot(high, x_high, y, input_precision="ieee")
        if L.sub_scales:
            scale *= tl.load(planes.scales + group).to(tl.float32)
        return tl.fma(y, tl.broadcast_to(scale[:, :, None], y.shape), total)
    else:
        y_high = tl.dot(high, x_high, input_precision="ieee")
        if L.bits > 4:
            low, high = unpack_bits(planes, rows, units, n_units, x_low, L, U)
            y = tl.dot(low, x_low, y, input_precision="ieee")
            y_high = tl.dot(high, x_high, y_high, input_precision="ieee")
        least = scale
        if L.mins:
            least = tl.load(planes.super_mins + block).to(tl.float32)
        total = _add_groups(total, planes, group, scale, least, y, x_low, L, U)
        return _add_groups(total, planes, group + L.half // L.group, scale, least, y_high, x_high, L, U)


@triton.jit
def _add_groups(total, planes, group, scale, least, y, x, L: tl.constexpr, U: tl.constexpr):
    """Sums y [U, R, T] of codes times x, under sub-scales `group` [U, R] of the plane."""
    scale *= tl.load(planes.scales + group).to(tl.float32)
    if L.mins:
        least = least * tl.load(planes.mins + group).to(tl.float32) + U.bias * scale
        # Sums of tokens, one more product: each thread gets those it needs, without a word to others.
        ones = tl.full([y.shape[0], y.shape[1], x.shape[1]], 1.0, x.dtype)
        sums = tl.dot(ones, x, input_precision="ieee")
        total = tl.fma(tl.broadcast_to(-least[:, :, None], y.shape), sums, total)
    return tl.fma(y, tl.broadcast_to(scale[:, :, None], y.shape), total)


@triton.jit(do_not_specialize=["n_splits"])
def sum_splits_kernel(parts, out, n_splits, size, DUAL: tl.constexpr, COLUMNS: tl.constexpr):
    """out[i] = Σ over splits, in their order, of parts [splits, size]; DUAL: SwiGLU of [splits, 2, size]."""
    i = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    there = i < size
    each: tl.constexpr = 2 if DUAL else 1
    y = tl.zeros([COLUMNS], tl.float32)
    second = y
    for split in range(n_splits):
        at = parts + tl.cast(split, tl.int64) * each * size + i
        y += tl.load(at, mask=there, other=0.0)
        if DUAL:
            second += tl.load(at + size, mask=there, other=0.0)
    if DUAL:
        y = y / (1.0 + tl.exp(-y)) * second
    tl.store(out + i, y.to(out.dtype.element_ty), mask=there)


def few_tokens(x: Tensor, matrix: QuantMatrix, up: QuantMatrix | None = None) -> Tensor:
    """x: [T, K] → [T, N]: x·Wᵀ, or silu(x·Wᵀ) × (x·Wupᵀ), in x's type; codes exact, sums in float32.

    Args:
        x: at most `MOST_TOKENS`, contiguous, on the matrix's device.
        matrix: [N, K].
        up: [N, K] of the same layout as `matrix`.
    """
    n_tokens, (n_rows, width) = len(x), matrix.shape
    layout, dual = matrix.layout, up is not None
    n_units = width // (2 * layout.unit)
    plan = make_plan(n_tokens, n_rows, n_units, dual=dual)
    out = torch.empty(n_tokens, n_rows, dtype=x.dtype, device=x.device)
    split = plan.splits > 1
    parts = out
    if split:
        parts = torch.empty(plan.splits, 1 + dual, n_tokens, n_rows, dtype=torch.float32, device=x.device)
    few_kernel[(triton.cdiv(n_rows, plan.rows), plan.splits)](
        x,
        matrix.planes,
        (up or matrix).planes,
        parts,
        n_tokens,
        n_rows,
        n_units,
        plan.steps * UNITS.value,
        L=layout,
        ROWS=plan.rows,
        TOKENS=plan.tokens,
        DUAL=dual,
        SPLIT=split,
        U=choose_unpacking(layout, x.dtype),
        num_warps=UNITS.value,
        num_stages=3,
    )
    if split:
        sum_splits_kernel[(triton.cdiv(out.numel(), _MERGE_COLUMNS),)](
            parts, out, plan.splits, out.numel(), DUAL=dual, COLUMNS=_MERGE_COLUMNS
        )
    return out


ROWS = 64
"""Of a program, half as many of each of two matrices: their sums share the registers."""

SPLIT_PROGRAMS = 256
"""Below so many programs a multiplication is cut along K, to fill the GPU."""


def make_plan(n_tokens: int, n_rows: int, n_units: int, *, dual: bool) -> Plan:
    """Tokens take their place in eights, which is a tensor core's step; each split has at least two steps."""
    rows = ROWS // 2 if dual else ROWS
    steps = triton.cdiv(n_units, UNITS.value)
    programs = triton.cdiv(n_rows, rows)
    splits = max(1, min(triton.cdiv(SPLIT_PROGRAMS, programs), steps // 2))
    per_split = triton.cdiv(steps, splits)
    return Plan(rows, 8 if n_tokens <= 8 else MOST_TOKENS, per_split, triton.cdiv(steps, per_split))
