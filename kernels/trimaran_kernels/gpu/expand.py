"""Decode whole rows of a matrix to a plain one: for long batches, whose product outweighs it by far."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from trimaran_kernels.gpu.decode import decode_units, low_columns
from trimaran_kernels.gpu.matrix import QuantMatrix

_ROWS = 8
_CODES = 256


@triton.jit
def expand_kernel(
    matrix, out, first_row, n_rows, width, L: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr
):
    """out[r, k] = matrix[first_row + r, k]."""
    unit: tl.constexpr = L.unit
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    units = tl.program_id(1) * UNITS + tl.arange(0, UNITS)
    live = (rows < n_rows)[:, None] & (units < width // (2 * unit))[None, :]
    low, high = decode_units(matrix, (first_row + rows).to(tl.int64), units, live, width, L)
    columns = low_columns(units, L)[:, None] + tl.arange(0, unit)[None, :]
    target = out + rows.to(tl.int64)[:, None, None] * width + columns[None, :, :]
    tl.store(target, low.to(out.dtype.element_ty), mask=live[:, :, None])
    tl.store(target + L.half, high.to(out.dtype.element_ty), mask=live[:, :, None])


def expand_rows(matrix: QuantMatrix, rows: slice, dtype: torch.dtype) -> Tensor:
    """Rows of a matrix [N, K], decoded: [rows, K] in `dtype` on its device."""
    width, layout = matrix.shape[1], matrix.layout
    out = torch.empty(rows.stop - rows.start, width, dtype=dtype, device=matrix.device)
    units = _CODES // layout.unit
    grid = (triton.cdiv(len(out), _ROWS), triton.cdiv(width // (2 * layout.unit), units))
    expand_kernel[grid](
        matrix.planes, out, rows.start, len(out), width, L=layout, ROWS=_ROWS, UNITS=units, num_warps=4
    )
    return out
