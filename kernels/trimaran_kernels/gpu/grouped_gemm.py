"""Many tokens through their experts: places sorted by expert, tiles of weights decoded in registers.

The second half goes over the output in slices of columns, which bounds what it keeps for each place until a
token's experts are summed.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import silu

from trimaran_kernels.gpu.gemm import choose_tile, tile_sums
from trimaran_kernels.gpu.grouped_gemv import slot_of
from trimaran_kernels.gpu.grouped_routing import Routing, route
from trimaran_kernels.gpu.grouped_stack import ExpertStack
from trimaran_kernels.gpu.matrix import QuantMatrix

PART_BYTES = 64 << 20
"""Of one slice of all places' outputs; at least one block of rows is computed at a time."""

_SUM_COLUMNS = 512


@triton.jit
def grouped_up_kernel(
    x,
    routing,
    gate,
    up,
    out,
    n_rows,
    width,
    top_k,
    L: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    UNITS: tl.constexpr,
    DUAL: tl.constexpr,
):
    """out[position, n] = gate_e[n]·x[token], with DUAL its silu times up_e[n]·x[token]."""
    block = tl.program_id(1)
    slot = tl.load(routing.block_slot + block)
    if slot >= 0:
        position = tl.load(routing.block_first + block) + tl.arange(0, TOKENS)
        there = position < tl.load(routing.block_end + block)
        place = tl.load(routing.order + position, mask=there, other=0)
        local = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        exists = local < n_rows
        rows = slot.to(tl.int64) * n_rows + local
        end = width // (2 * L.unit)
        total, second = tile_sums(
            x, place // top_k, there, gate, up, rows, exists, 0, end, width, L, ROWS, TOKENS, UNITS, DUAL
        )
        if DUAL:
            total = total / (1.0 + tl.exp(-total)) * second
        target = out + position.to(tl.int64)[None, :] * n_rows + local[:, None]
        tl.store(target, total.to(out.dtype.element_ty), mask=exists[:, None] & there[None, :])


@triton.jit
def grouped_down_kernel(
    hidden,
    routing,
    weights,
    down,
    part,
    first_row,
    n_rows,
    all_rows,
    width,
    L: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    UNITS: tl.constexpr,
):
    """part[place, n] = weight[place] · down_e[first_row + n]·hidden[position], for n < n_rows."""
    block = tl.program_id(1)
    slot = tl.load(routing.block_slot + block)
    if slot >= 0:
        position = tl.load(routing.block_first + block) + tl.arange(0, TOKENS)
        there = position < tl.load(routing.block_end + block)
        place = tl.load(routing.order + position, mask=there, other=0)
        local = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        exists = local < n_rows
        rows = slot.to(tl.int64) * all_rows + first_row + local
        inputs = position.to(tl.int64)
        end = width // (2 * L.unit)
        total, _ = tile_sums(
            hidden, inputs, there, down, down, rows, exists, 0, end, width, L, ROWS, TOKENS, UNITS, False
        )
        total *= tl.load(weights + place, mask=there, other=0.0)[None, :]
        tl.store(
            part + place[None, :] * n_rows + local[:, None], total, mask=exists[:, None] & there[None, :]
        )


@triton.jit
def grouped_sum_kernel(
    part, ids, slots, out, first_row, n_rows, all_rows, top_k, COLUMNS: tl.constexpr, ADD: tl.constexpr
):
    """out[t, first_row + n] (+)= Σ_j part[t·top_k + j, n] over the places with a slot, in the order of j."""
    token = tl.program_id(0)  # the one dimension of a grid that may exceed 65,535
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    exists = column < n_rows
    total = tl.zeros([COLUMNS], tl.float32)
    for j in range(top_k):
        place = token * top_k + j
        if slot_of(place, ids, slots) >= 0:
            total += tl.load(part + place.to(tl.int64) * n_rows + column, mask=exists, other=0.0)
    target = out + token.to(tl.int64) * all_rows + first_row + column
    if ADD:
        total += tl.load(target, mask=exists, other=0.0)
    tl.store(target, total, mask=exists)


def grouped_gemm(
    x: Tensor, ids: Tensor, weights: Tensor, slots: Tensor, stack: ExpertStack, out: Tensor, *, add: bool
) -> None:
    """See `grouped.grouped_experts`, whose arguments these are; all are contiguous."""
    tile = choose_tile(-(-ids.numel() // stack.n_slots))
    routing = route(ids, slots, stack.n_slots, tile.tokens)
    hidden = _activate(x, routing, stack, ids.shape[1], tile.tokens)
    step = slice_rows_of(ids.numel(), tile.rows)
    for first in range(0, stack.hidden, step):
        n_rows = min(step, stack.hidden - first)
        part = torch.empty(ids.numel(), n_rows, dtype=torch.float32, device=x.device)
        _down(hidden, routing, weights, stack, part, first, tile.tokens)
        grouped_sum_kernel[(len(x), triton.cdiv(n_rows, _SUM_COLUMNS))](
            part,
            ids,
            slots,
            out,
            first,
            n_rows,
            stack.hidden,
            ids.shape[1],
            COLUMNS=_SUM_COLUMNS,
            ADD=add,
        )


def slice_rows_of(n_places: int, tile_rows: int) -> int:
    """Output columns that are computed at a time: a multiple of a tile's rows, and of 16 bytes."""
    return max(1, PART_BYTES // (4 * n_places * tile_rows)) * tile_rows


def _activate(x: Tensor, routing: Routing, stack: ExpertStack, top_k: int, tokens: int) -> Tensor:
    """silu(gate·x) × (up·x) of every place that has a slot, by position: [T · top_k, intermediate]."""
    if stack.gate.layout == stack.up.layout:
        return _project(x, routing, stack, top_k, tokens, stack.gate, stack.up)
    gates = _project(x, routing, stack, top_k, tokens, stack.gate)
    return silu(gates).mul_(_project(x, routing, stack, top_k, tokens, stack.up))


def _project(
    x: Tensor,
    routing: Routing,
    stack: ExpertStack,
    top_k: int,
    tokens: int,
    matrix: QuantMatrix,
    up: QuantMatrix | None = None,
) -> Tensor:
    layout, tile = matrix.layout, choose_tile(tokens)
    out = torch.empty(len(routing.order), stack.intermediate, dtype=x.dtype, device=x.device)
    grouped_up_kernel[(triton.cdiv(stack.intermediate, tile.rows), len(routing.block_slot))](
        x,
        routing,
        matrix.planes,
        (up or matrix).planes,
        out,
        stack.intermediate,
        stack.hidden,
        top_k,
        L=layout,
        ROWS=tile.rows,
        TOKENS=tokens,
        UNITS=max(1, tile.codes // layout.unit),
        DUAL=up is not None,
        num_warps=8 if up is not None and tokens > 64 else tile.warps,  # two sums fill four warps' registers
        num_stages=3,
    )
    return out


def _down(
    hidden: Tensor,
    routing: Routing,
    weights: Tensor,
    stack: ExpertStack,
    part: Tensor,
    first: int,
    tokens: int,
) -> None:
    layout, tile = stack.down.layout, choose_tile(tokens)
    grouped_down_kernel[(triton.cdiv(part.shape[1], tile.rows), len(routing.block_slot))](
        hidden,
        routing,
        weights,
        stack.down.planes,
        part,
        first,
        part.shape[1],
        stack.hidden,
        stack.intermediate,
        L=layout,
        ROWS=tile.rows,
        TOKENS=tokens,
        UNITS=max(1, tile.codes // layout.unit),
        num_warps=tile.warps,
        num_stages=3,
    )
