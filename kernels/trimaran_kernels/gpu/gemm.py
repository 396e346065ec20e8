"""A few to some hundred tokens through a quantised matrix.

Tiles of it are decoded in registers and multiplied by tensor cores: memory holds the quantised form only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from trimaran_kernels.gpu.decode import decode_units, low_columns
from trimaran_kernels.gpu.matrix import QuantMatrix
from trimaran_kernels.gpu.target import has_large_shared_memory

SPLIT_PROGRAMS = 256
"""Below so many programs a multiplication is cut along K, to fill the GPU."""


@dataclass(frozen=True)
class Tile:
    """What a program computes: `rows` of the matrix × `tokens`, `codes` bytes of each row at a time."""

    rows: int
    tokens: int
    codes: int
    warps: int


@triton.jit(do_not_specialize=["n_tokens"])  # or each batch size of a kind is compiled again
def gemm_kernel(
    x,
    gate,
    up,
    out,
    n_tokens,
    n_rows,
    width,
    units_per_split,
    L: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    UNITS: tl.constexpr,
    DUAL: tl.constexpr,
):
    """out[split, t, n] = Σ gate[n, k]·x[t, k] over the split's part of k; DUAL as in `gemv_kernel`."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    tokens = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    split = tl.program_id(2)
    exists = rows < n_rows
    rows = rows.to(tl.int64)
    there = tokens < n_tokens
    first = split * units_per_split
    last = min(first + units_per_split, width // (2 * L.unit))
    inputs = tokens.to(tl.int64)
    total, second = tile_sums(
        x, inputs, there, gate, up, rows, exists, first, last, width, L, ROWS, TOKENS, UNITS, DUAL
    )
    if DUAL:
        total = total / (1.0 + tl.exp(-total)) * second
    target = out + (split.to(tl.int64) * n_tokens + tokens[None, :]) * n_rows + rows[:, None]
    tl.store(target, total.to(out.dtype.element_ty), mask=exists[:, None] & there[None, :])


@triton.jit
def tile_sums(
    x,
    inputs,
    there,
    first_planes,
    second_planes,
    rows,
    exists,
    begin,
    end,
    width,
    L: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    UNITS: tl.constexpr,
    DUAL: tl.constexpr,
):
    """Products of rows of one or two matrices with tokens, over units [begin, end) of the rows.

    Args:
        x: tokens of `width` values; inputs: [TOKENS] int64, which; there: whether they exist.
        first_planes, second_planes: `Planes`; rows: [ROWS] int64, which of theirs; exists: whether they do.

    Returns:
        Two tiles [ROWS, TOKENS] float32; the second is zeros without DUAL.
    """
    unit: tl.constexpr = L.unit
    codes: tl.constexpr = UNITS * L.unit
    x_rows = x + inputs[:, None] * width
    i = tl.arange(0, unit)
    total = tl.zeros([ROWS, TOKENS], tl.float32)
    second = tl.zeros([ROWS, TOKENS], tl.float32)
    for start in range(begin, end, UNITS):
        units = start + tl.arange(0, UNITS)
        live = exists[:, None] & (units < end)[None, :]
        at = tl.reshape(low_columns(units, L)[:, None] + i[None, :], [codes])
        mask = there[:, None] & (at + L.half < width)[None, :]
        x_low = tl.trans(tl.load(x_rows + at[None, :], mask=mask, other=0.0))
        x_high = tl.trans(tl.load(x_rows + at[None, :] + L.half, mask=mask, other=0.0))
        low, high = decode_units(first_planes, rows, units, live, width, L)
        total = _multiply(low, high, x_low, x_high, total, ROWS, codes)
        if DUAL:
            low, high = decode_units(second_planes, rows, units, live, width, L)
            second = _multiply(low, high, x_low, x_high, second, ROWS, codes)
    return total, second


@triton.jit
def _multiply(low, high, x_low, x_high, total, ROWS: tl.constexpr, CODES: tl.constexpr):
    """total + low·x_low + high·x_high, the weights rounded to x's type."""
    low = tl.reshape(low, [ROWS, CODES]).to(x_low.dtype)
    high = tl.reshape(high, [ROWS, CODES]).to(x_high.dtype)
    total = tl.dot(low, x_low, total, input_precision="ieee")
    return tl.dot(high, x_high, total, input_precision="ieee")


def gemm(x: Tensor, matrix: QuantMatrix, up: QuantMatrix | None = None) -> Tensor:
    """x: [T, K] → [T, N]: x·Wᵀ, or silu(x·Wᵀ) × (x·Wupᵀ), in x's type.

    Weights are rounded to x's type and sums kept in float32.

    Args:
        x: contiguous, on the matrix's device.
        matrix: [N, K].
        up: [N, K] of the same layout as `matrix`.
    """
    n_tokens, (n_rows, width) = len(x), matrix.shape
    layout, tile = matrix.layout, choose_tile(n_tokens)
    n_units = width // (2 * layout.unit)
    units = max(1, tile.codes // layout.unit)
    grid = (triton.cdiv(n_rows, tile.rows), triton.cdiv(n_tokens, tile.tokens))
    # SwiGLU needs whole sums, so a dual multiplication is not split.
    splits = 1 if up is not None else count_splits(grid[0] * grid[1], n_units, units)
    per_split = triton.cdiv(triton.cdiv(n_units, splits), units) * units
    splits = triton.cdiv(n_units, per_split)
    dtype = x.dtype if splits == 1 else torch.float32
    out = torch.empty(splits, n_tokens, n_rows, dtype=dtype, device=x.device)
    gemm_kernel[(*grid, splits)](
        x,
        matrix.planes,
        (up or matrix).planes,
        out,
        n_tokens,
        n_rows,
        width,
        per_split,
        L=layout,
        ROWS=tile.rows,
        TOKENS=tile.tokens,
        UNITS=units,
        DUAL=up is not None,
        num_warps=_warps_of(tile, dual=up is not None),
        num_stages=3,
    )
    return out[0] if splits == 1 else out.sum(0).to(x.dtype)


def _warps_of(tile: Tile, *, dual: bool) -> int:
    """Two sums of the widest tile are too many for four warps' registers, except on Hopper and the like."""
    return 8 if dual and tile.tokens > 64 and not has_large_shared_memory() else tile.warps


def choose_tile(n_tokens: int) -> Tile:
    """A tile for a batch: narrow ones waste least of the tensor cores' 8-column steps."""
    tokens = next((size for size in (16, 32, 64) if n_tokens <= size), 128)
    return Tile(rows=64, tokens=tokens, codes=32 if tokens == 128 else 64, warps=4)


def count_splits(programs: int, n_units: int, units_per_step: int) -> int:
    """How many parts of K: enough programs for a GPU, but each at least eight steps long."""
    wanted = -(-SPLIT_PROGRAMS // programs)
    return max(1, min(wanted, n_units // (8 * units_per_step)))
