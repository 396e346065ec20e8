"""A few tokens through their experts: each (token, choice) reads its expert's weights by itself.

Nothing is sorted and nothing is looked up on the host: a program asks the table which slot, if any, holds its
expert.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import silu

from trimaran_kernels.gpu.gemv import BYTES_PER_STEP, row_sums, rows_per_program
from trimaran_kernels.gpu.grouped_stack import ExpertStack
from trimaran_kernels.gpu.matrix import QuantMatrix


@triton.jit
def slot_of(place, ids, slots):
    """The slot that computes a place, or -1."""
    expert = tl.load(ids + place)
    return tl.load(slots + expert, mask=expert >= 0, other=-1)


@triton.jit
def expert_up_kernel(
    x,
    ids,
    slots,
    gate,
    up,
    out,
    n_rows,
    width,
    top_k,
    L: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    DUAL: tl.constexpr,
):
    """out[place, n] = gate_e[n]·x[token], with DUAL its silu times up_e[n]·x[token], if there is a slot."""
    place = tl.program_id(1)
    slot = slot_of(place, ids, slots)
    if slot >= 0:
        local = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        exists = local < n_rows
        rows = slot.to(tl.int64) * n_rows + local
        vector = x + (place // top_k).to(tl.int64) * width
        y, second = row_sums(vector, gate, up, rows, exists, width, L, ROWS, UNITS, DUAL)
        if DUAL:
            y = y / (1.0 + tl.exp(-y)) * second
        tl.store(out + place.to(tl.int64) * n_rows + local, y.to(out.dtype.element_ty), mask=exists)


@triton.jit
def expert_down_kernel(
    hidden,
    ids,
    slots,
    weights,
    down,
    out,
    n_rows,
    width,
    top_k,
    L: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    ADD: tl.constexpr,
):
    """out[t, n] (+)= Σ_j weights[t, j]·down_e[n]·hidden[t·top_k + j], in the order of j."""
    token = tl.program_id(1)
    local = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    exists = local < n_rows
    total = tl.zeros([ROWS], tl.float32)
    for j in range(top_k):
        place = token * top_k + j
        slot = slot_of(place, ids, slots)
        if slot >= 0:
            rows = slot.to(tl.int64) * n_rows + local
            vector = hidden + place.to(tl.int64) * width
            y, _ = row_sums(vector, down, down, rows, exists, width, L, ROWS, UNITS, False)
            total += tl.load(weights + place) * y
    target = out + token.to(tl.int64) * n_rows + local
    if ADD:
        total += tl.load(target, mask=exists, other=0.0)
    tl.store(target, total, mask=exists)


def grouped_gemv(
    x: Tensor, ids: Tensor, weights: Tensor, slots: Tensor, stack: ExpertStack, out: Tensor, *, add: bool
) -> None:
    """See `grouped.grouped_experts`, whose arguments these are; all are contiguous."""
    hidden = _activate(x, ids, slots, stack)
    n_rows, layout = stack.hidden, stack.down.layout
    rows = rows_per_program(n_rows)
    expert_down_kernel[(triton.cdiv(n_rows, rows), len(x))](
        hidden,
        ids,
        slots,
        weights,
        stack.down.planes,
        out,
        n_rows,
        stack.intermediate,
        ids.shape[1],
        L=layout,
        ROWS=rows,
        UNITS=BYTES_PER_STEP // layout.unit,
        ADD=add,
        num_warps=4,
    )


def _activate(x: Tensor, ids: Tensor, slots: Tensor, stack: ExpertStack) -> Tensor:
    """silu(gate·x) × (up·x) of every place that has a slot: float32 [T · top_k, intermediate]."""
    if stack.gate.layout == stack.up.layout:
        return _project(x, ids, slots, stack, stack.gate, stack.up)
    gates = _project(x, ids, slots, stack, stack.gate)
    return silu(gates).mul_(_project(x, ids, slots, stack, stack.up))


def _project(
    x: Tensor,
    ids: Tensor,
    slots: Tensor,
    stack: ExpertStack,
    matrix: QuantMatrix,
    up: QuantMatrix | None = None,
) -> Tensor:
    n_rows, layout = stack.intermediate, matrix.layout
    rows = rows_per_program(n_rows)
    out = torch.empty(ids.numel(), n_rows, dtype=torch.float32, device=x.device)
    expert_up_kernel[(triton.cdiv(n_rows, rows), ids.numel())](
        x,
        ids,
        slots,
        matrix.planes,
        (up or matrix).planes,
        out,
        n_rows,
        stack.hidden,
        ids.shape[1],
        L=layout,
        ROWS=rows,
        UNITS=BYTES_PER_STEP // layout.unit,
        DUAL=up is not None,
        num_warps=4,
    )
    return out
