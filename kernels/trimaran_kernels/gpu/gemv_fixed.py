"""One token of 16-bit floats through a quantised matrix, or through two with SwiGLU, by integer dot products.

A GPU reads 4-bit weights faster than it can turn them into floats one by one. So tokens become 16-bit
integers, sixteen values under one scale; codes stay integers; four columns take two instructions to multiply;
and floats begin where sixteen columns are summed. A token's values are rounded at 2^-16 of the largest of
sixteen: less than their own type has done (2^-9 and 2^-12 of each).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from trimaran_kernels.gpu.matrix import QuantMatrix
from trimaran_kernels.gpu.target import interprets
from trimaran_kernels.gpu.words import (
    CHUNK_COLUMNS,
    chunk_columns,
    code_words,
    dot_words,
    high_factor,
    to_fixed,
)

_WARPS = 4


@triton.jit(do_not_specialize=["n_rows"])
def fixed_gemv_kernel(
    x,
    gate,
    up,
    out,
    n_rows,
    n_chunks,
    L: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNKS: tl.constexpr,
    DUAL: tl.constexpr,
    ASM: tl.constexpr,
):
    """out[n] = Σ gate[n, k]·x[k] for ROWS rows; with DUAL silu of that times Σ up[n, k]·x[k]."""
    # The last program computes some rows again, and the same, rather than ask for each whether it exists.
    row = tl.minimum(tl.program_id(0) * ROWS, n_rows - ROWS)
    totals = _zeros(ROWS, CHUNKS)
    seconds = totals
    for start in range(0, n_chunks, CHUNKS):
        chunk = start + tl.arange(0, CHUNKS)
        at = x + chunk_columns(chunk, L)
        low = _load_fixed(at, chunk < n_chunks)
        high = _load_fixed(at + L.half, chunk < n_chunks)
        chunks = tl.minimum(chunk, n_chunks - 1)
        totals = _add_products(totals, gate, row, chunks, n_chunks, low, high, L, ASM)
        if DUAL:
            seconds = _add_products(seconds, up, row, chunks, n_chunks, low, high, L, ASM)
    for r in tl.static_range(ROWS):
        y = tl.sum(totals[r], 0)
        if DUAL:
            y = y / (1.0 + tl.exp(-y)) * tl.sum(seconds[r], 0)
        tl.store(out + row + r, y.to(out.dtype.element_ty))


@triton.jit
def _zeros(ROWS: tl.constexpr, CHUNKS: tl.constexpr):
    """A tuple of tiles: rows of one tile would be dealt out to threads, and each is to have all of them."""
    zeros = ()
    for _ in tl.static_range(ROWS):
        zeros = zeros + (tl.zeros([CHUNKS], tl.float32),)  # type: ignore[assignment]
    return zeros


@triton.jit
def _add_products(totals, planes, row, chunks, n_chunks, low, high, L: tl.constexpr, ASM: tl.constexpr):
    """Add each row's products to its tile of `totals`."""
    sums = ()
    for r in tl.static_range(len(totals)):
        sums = sums + (totals[r] + _products(planes, row + r, chunks, n_chunks, low, high, L, ASM),)  # type: ignore[assignment]
    return sums


@triton.jit
def _load_fixed(at, there):
    """Sixteen values from each of `at` [C], as `to_fixed` gives them; zeros where not `there`."""
    i = tl.arange(0, 8)
    a = tl.load(at[:, None] + i, mask=there[:, None], other=0.0).to(tl.float32)
    b = tl.load(at[:, None] + 8 + i, mask=there[:, None], other=0.0).to(tl.float32)
    return to_fixed(a, b)


@triton.jit
def _products(planes, row, chunks, n_chunks, low, high, L: tl.constexpr, ASM: tl.constexpr):
    """[C]: a row times the token, summed over the columns of each chunk."""
    signed: tl.constexpr = L.bits == 8 or L.table
    low_words, high_words = code_words(planes, row, chunks, n_chunks, L, ASM)
    low_sum = dot_words(low_words, low[0], signed, ASM).to(tl.float32) * low[1]
    unit = high[1] * (1.0 / high_factor(L))
    high_sum = dot_words(high_words, high[0], signed, ASM).to(tl.float32) * unit
    if L.offset != 0:
        low_sum -= L.offset * low[2]
        high_sum -= L.offset * high[2]
    column = chunk_columns(chunks, L)
    block = row * (n_chunks * 32 // L.block) + (column // L.block)
    scale = tl.load(planes.supers + block).to(tl.float32)
    if not L.sub_scales:
        return scale * (low_sum + high_sum)
    group = row * (n_chunks * 32 // L.group) + (column // L.group)
    apart: tl.constexpr = L.half // L.group
    low_scale = tl.load(planes.scales + group).to(tl.float32)
    high_scale = tl.load(planes.scales + group + apart).to(tl.float32)
    sums = scale * (low_scale * low_sum + high_scale * high_sum)
    if L.mins:
        least = tl.load(planes.super_mins + block).to(tl.float32)
        low_min = tl.load(planes.mins + group).to(tl.float32)
        high_min = tl.load(planes.mins + group + apart).to(tl.float32)
        sums -= least * (low_min * low[2] + high_min * high[2])
    return sums


def fixed_gemv(x: Tensor, matrix: QuantMatrix, up: QuantMatrix | None = None) -> Tensor:
    """x: [1, K] → [1, N]: W·x, or silu(W·x) × (Wup·x), in x's type; sums of sixteen columns are exact.

    Args:
        x: float16 or bfloat16, contiguous, on the matrix's device.
        matrix: [N, K].
        up: [N, K] of the same layout as `matrix`.
    """
    n_rows, width = matrix.shape
    rows = rows_per_program(n_rows)
    out = torch.empty(1, n_rows, dtype=x.dtype, device=x.device)
    fixed_gemv_kernel[(triton.cdiv(n_rows, rows),)](
        x,
        matrix.planes,
        (up or matrix).planes,
        out,
        n_rows,
        width // CHUNK_COLUMNS,
        L=matrix.layout,
        ROWS=rows,
        CHUNKS=_WARPS * 32,
        DUAL=up is not None,
        ASM=not interprets(),
        num_warps=_WARPS,
    )
    return out


def rows_per_program(n_rows: int) -> int:
    """Rows share what the token's values cost to prepare; but there must be enough programs to fill a GPU."""
    return next(rows for rows in (8, 4, 2, 1) if n_rows >= 512 * rows or rows == 1)
