"""One token through a quantised matrix, or through two with SwiGLU between: bound by the matrix's bytes."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from trimaran_kernels.gpu.decode import decode_units, low_columns
from trimaran_kernels.gpu.matrix import QuantMatrix

BYTES_PER_STEP = 256
"""Bytes of codes that a program reads of each of its rows at a time."""


@triton.jit
def gemv_kernel(
    x,
    gate,
    up,
    out,
    n_rows,
    width,
    L: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    DUAL: tl.constexpr,
):
    """out[n] = Σ gate[n, k]·x[k] for ROWS rows; with DUAL silu of that times Σ up[n, k]·x[k]."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    exists = rows < n_rows
    rows = rows.to(tl.int64)
    y, second = row_sums(x, gate, up, rows, exists, width, L, ROWS, UNITS, DUAL)
    if DUAL:
        y = y / (1.0 + tl.exp(-y)) * second
    tl.store(out + rows, y.to(out.dtype.element_ty), mask=exists)


@triton.jit
def row_sums(
    x,
    first,
    second,
    rows,
    exists,
    width,
    L: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    DUAL: tl.constexpr,
):
    """Σ first[r, k]·x[k] for ROWS rows, and with DUAL the same of `second`, else a copy."""
    unit: tl.constexpr = L.unit
    i = tl.arange(0, unit)
    total = tl.zeros([ROWS, UNITS, unit], tl.float32)
    other = total
    n_units = width // (2 * unit)
    for start in range(0, n_units, UNITS):
        units = start + tl.arange(0, UNITS)
        live = exists[:, None] & (units < n_units)[None, :]
        at = low_columns(units, L)[:, None] + i[None, :]
        there = (units < n_units)[:, None]
        x_low = tl.load(x + at, mask=there, other=0.0).to(tl.float32)[None, :, :]
        x_high = tl.load(x + at + L.half, mask=there, other=0.0).to(tl.float32)[None, :, :]
        low, high = decode_units(first, rows, units, live, width, L)
        total += low * x_low + high * x_high
        if DUAL:
            low, high = decode_units(second, rows, units, live, width, L)
            other += low * x_low + high * x_high
    return tl.sum(tl.sum(total, 2), 1), tl.sum(tl.sum(other, 2), 1)


def gemv(x: Tensor, matrix: QuantMatrix, up: QuantMatrix | None = None) -> Tensor:
    """x: [1, K] → [1, N]: W·x, or silu(W·x) × (Wup·x), accumulated in float32, in x's type.

    Args:
        x: contiguous, on the matrix's device.
        matrix: [N, K].
        up: [N, K] of the same layout as `matrix`.
    """
    n_rows, width = matrix.shape
    layout = matrix.layout
    rows = rows_per_program(n_rows)
    out = torch.empty(1, n_rows, dtype=x.dtype, device=x.device)
    gemv_kernel[(triton.cdiv(n_rows, rows),)](
        x,
        matrix.planes,
        (up or matrix).planes,
        out,
        n_rows,
        width,
        L=layout,
        ROWS=rows,
        UNITS=BYTES_PER_STEP // layout.unit,
        DUAL=up is not None,
        num_warps=4,
    )
    return out


def rows_per_program(n_rows: int) -> int:
    """Few for a short matrix, so that there are enough programs to fill a GPU."""
    return next(rows for rows in (8, 4, 2, 1) if n_rows >= 512 * rows or rows == 1)
