"""The hop to the experts from a GPU: tokens into the arenas, the request, the wait, the answers out again.

Everything that changes from step to step (sequence numbers, addresses, how many rows are real) is read from
device memory, so that launches can be replayed. An error ends the hops of a step: later launches see
it in the report and do nothing, rows of answers are 0, and the host reads it when the step is over.

The layout of an arena is that of `trimaran.arena`; each shard has one, of the same dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch
import triton
import triton.language as tl
from torch import Tensor

from trimaran_kernels.gpu.system_memory import INTERPRETED, load_acquire, nanoseconds, store_release

CHUNK = 2048
"""Values of a row that a program copies: several programs share a token's 14 KB."""

LOOKS = tl.constexpr(16)
"""At the done word, before the clock and the abandoned word are looked at."""

LOOK_S = 1e-3
"""What a look takes in the interpreter, about: there it is counted instead of timed."""

_ABANDONED = tl.constexpr(256)
_LAYER, _N_TOKENS = tl.constexpr(4), tl.constexpr(8)
_DONE, _STATUS = tl.constexpr(64), tl.constexpr(68)


class HopFailure(IntEnum):
    """Why a step's hops ended."""

    TIMEOUT = 1
    ABANDONED = 2
    STATUS = 3


_TIMEOUT, _GONE, _BAD = (tl.constexpr(int(failure)) for failure in HopFailure)


@dataclass(frozen=True)
class SlotPlace:
    """Where a slot and its tensors lie, in bytes from an arena's start; whether x and y are bf16."""

    slot: int
    base: int
    x: int
    ids: int
    weights: int
    y: int
    is_bf16: bool


@dataclass(frozen=True)
class HopState:
    """What the kernels keep on the device.

    Attributes:
        arenas: int64 [shards], addresses of the arenas, as the device sees them.
        sequences: int32 [slots], of the last request in each slot.
        arrivals: int32 [1], programs of a submit that have written their part; 0 between launches.
        report: int64 [7], 0 or a `HopFailure`, its layer, shard and status; then, since ever, nanoseconds
            waited, waits, and rows that were asked for.
    """

    arenas: Tensor
    sequences: Tensor
    arrivals: Tensor
    report: Tensor

    @classmethod
    def make(cls, n_shards: int, n_slots: int, device: torch.device) -> HopState:
        """Nothing asked yet, no error, no addresses."""
        return cls(
            torch.zeros(n_shards, dtype=torch.int64, device=device),
            torch.zeros(n_slots, dtype=torch.int32, device=device),
            torch.zeros(1, dtype=torch.int32, device=device),
            torch.zeros(7, dtype=torch.int64, device=device),
        )


@triton.jit
def _word(arenas, shard, offset):
    """An int32 of a shard's arena, `offset` bytes from its start."""
    return (tl.load(arenas + shard) + offset).to(tl.pointer_type(tl.int32))


@triton.jit
def _vectors(arenas, shard, offset, BF16: tl.constexpr):
    """A slot's x or y: bits of bfloat16, or float32. Said to be aligned, so that accesses are wide."""
    address = tl.load(arenas + shard) + offset
    if BF16:
        return tl.multiple_of(address.to(tl.pointer_type(tl.uint16)), 64)
    else:
        return tl.multiple_of(address.to(tl.pointer_type(tl.float32)), 64)


@triton.jit
def bf16_bits(x):
    """float32 to the bits of the nearest bfloat16, ties to even, as uint16; NaN stays NaN."""
    bits = x.to(tl.uint32, bitcast=True)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return tl.where((bits & 0x7FFFFFFF) <= 0x7F800000, rounded, (bits >> 16) | 0x40).to(tl.uint16)


@triton.jit(do_not_specialize=["base", "slot", "layer"])
def submit_kernel(
    x, ids, weights, live, arenas, sequences, arrivals, report,
    base, x_at, ids_at, weights_at, slot, layer, hidden, top_k, n_shards,
    BF16: tl.constexpr, CHUNK: tl.constexpr, ROUTES: tl.constexpr,
):  # fmt: skip
    """Copies `live` rows of x, ids and weights to every shard; the last program to be done rings."""
    base = tl.full([], 0, tl.int64) + base  # a slot's tensors may lie beyond 2 GiB
    if tl.load(report) == 0:
        row = tl.program_id(0)
        part = tl.program_id(1)
        n_live = tl.load(live)
        if row < n_live:
            column = part * CHUNK + tl.arange(0, CHUNK)
            there = column < hidden
            values = tl.load(x + row.to(tl.int64) * hidden + column, mask=there, other=0.0)
            for shard in range(n_shards):
                target = _vectors(arenas, shard, base + x_at, BF16) + row.to(tl.int64) * hidden + column
                if BF16:
                    tl.store(target, bf16_bits(values.to(tl.float32)), mask=there)
                else:
                    tl.store(target, values.to(tl.float32), mask=there)
            if part == 0:
                k = tl.arange(0, ROUTES)
                routes = row * top_k + k
                expert = tl.load(ids + routes, mask=k < top_k, other=0)
                weight = tl.load(weights + routes, mask=k < top_k, other=0.0)
                for shard in range(n_shards):
                    tl.store(_word(arenas, shard, base + ids_at) + routes, expert, mask=k < top_k)
                    bits = weight.to(tl.int32, bitcast=True)
                    tl.store(_word(arenas, shard, base + weights_at) + routes, bits, mask=k < top_k)
        # Every thread's stores before this program's arrival: the last one's release then covers them all.
        tl.debug_barrier()
        arrived = tl.atomic_add(arrivals, 1, sem="acq_rel", scope="gpu")
        if arrived == tl.num_programs(0) * tl.num_programs(1) - 1:
            tl.store(arrivals, 0)
            sequence = tl.load(sequences + slot) + 1
            sequence = tl.where(sequence == 0, 1, sequence)  # fresh slots hold 0
            tl.store(sequences + slot, sequence)
            for shard in range(n_shards):
                tl.store(_word(arenas, shard, base + _LAYER), layer)
                tl.store(_word(arenas, shard, base + _N_TOKENS), n_live)
                store_release(_word(arenas, shard, base), sequence)


@triton.jit(do_not_specialize=["base", "slot", "layer", "limit"])
def await_kernel(live, arenas, sequences, report, base, slot, layer, limit, n_shards):
    """One program of one warp: waits for every shard in turn, and says in `report` what went wrong.

    limit: of each shard, from when it is its turn, in nanoseconds; in looks in the interpreter.
    """
    base = tl.full([], 0, tl.int64) + base  # a slot's tensors may lie beyond 2 GiB
    if tl.load(report) == 0:
        expected = tl.load(sequences + slot)
        began = nanoseconds()
        failure = tl.full([], 0, tl.int32)
        for shard in range(n_shards):
            if failure == 0:
                turn = nanoseconds()
                done = _word(arenas, shard, base + _DONE)
                gone = _word(arenas, shard, _ABANDONED)
                value = load_acquire(done)
                while (value != expected) & (failure == 0):
                    looks = tl.full([], 0, tl.int64)
                    while (value != expected) & (looks < LOOKS):
                        value = load_acquire(done)
                        looks += 1
                    if INTERPRETED:
                        began -= looks
                        turn -= looks
                    if value != expected:
                        if load_acquire(gone) != 0:
                            failure = tl.full([], _GONE, tl.int32)
                        elif nanoseconds() - turn > limit:
                            failure = tl.full([], _TIMEOUT, tl.int32)
                status = tl.full([], 0, tl.int32)
                if failure == 0:
                    status = load_acquire(_word(arenas, shard, base + _STATUS))
                    if status != 0:
                        failure = tl.full([], _BAD, tl.int32)
                if failure != 0:
                    tl.store(report + 1, layer)
                    tl.store(report + 2, shard)
                    tl.store(report + 3, status)
                    tl.store(report, failure)
        tl.store(report + 4, tl.load(report + 4) + nanoseconds() - began)
        tl.store(report + 5, tl.load(report + 5) + 1)
        tl.store(report + 6, tl.load(report + 6) + tl.load(live))


@triton.jit(do_not_specialize=["base"])
def collect_kernel(
    out, live, arenas, report, base, y_at, hidden, n_shards, BF16: tl.constexpr, CHUNK: tl.constexpr
):
    """out = the sum of the shards' answers; 0 in rows that are not live, and everywhere after an error."""
    base = tl.full([], 0, tl.int64) + base  # a slot's tensors may lie beyond 2 GiB
    row = tl.program_id(0)
    column = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    there = column < hidden
    n_live = tl.where(tl.load(report) == 0, tl.load(live), 0)
    wanted = column < tl.where(row < n_live, hidden, 0)
    total = tl.zeros([CHUNK], tl.float32)
    for shard in range(n_shards):
        source = _vectors(arenas, shard, base + y_at, BF16) + row.to(tl.int64) * hidden + column
        if BF16:
            bits = tl.load(source, mask=wanted, other=0, cache_modifier=".cv")
            total += (bits.to(tl.uint32) << 16).to(tl.float32, bitcast=True)
        else:
            total += tl.load(source, mask=wanted, other=0.0, cache_modifier=".cv")
    tl.store(out + row.to(tl.int64) * hidden + column, total.to(out.dtype.element_ty), mask=there)


def submit(
    state: HopState, place: SlotPlace, layer: int, x: Tensor, ids: Tensor, weights: Tensor, live: Tensor
) -> None:
    """Ask every shard for a layer, in the stream's order.

    Args:
        state: of the hop; sequences[place.slot] grows by one (and is never 0).
        place: a slot whose last request was awaited.
        layer: of the model.
        x: [n, hidden] floats, n at least 1. ids: int32 [n, top_k]. weights: float32 [n, top_k].
        live: int32 [1], how many of the n rows are real; the others do not cross.
    """
    n, hidden = x.shape
    submit_kernel[(n, triton.cdiv(hidden, CHUNK))](
        x.contiguous(),
        ids.contiguous(),
        weights.contiguous(),
        live,
        state.arenas,
        state.sequences,
        state.arrivals,
        state.report,
        place.base,
        place.x,
        place.ids,
        place.weights,
        place.slot,
        layer,
        hidden,
        ids.shape[1],
        len(state.arenas),
        BF16=place.is_bf16,
        CHUNK=CHUNK,
        ROUTES=triton.next_power_of_2(ids.shape[1]),
        num_warps=4,
    )


def wait(
    state: HopState, place: SlotPlace, layer: int, out: Tensor, live: Tensor, timeout_s: float
) -> Tensor:
    """The answers to what was asked last in the slot, summed over the shards.

    Args:
        state, place, layer, live: as of `submit`.
        out: [n, hidden] floats, to be written.
        timeout_s: of each shard.
    """
    limit = int(timeout_s / LOOK_S) if INTERPRETED.value else int(timeout_s * 1e9)
    n, hidden = out.shape
    await_kernel[(1,)](
        live,
        state.arenas,
        state.sequences,
        state.report,
        place.base,
        place.slot,
        layer,
        limit,
        len(state.arenas),
        num_warps=1,
    )
    collect_kernel[(n, triton.cdiv(hidden, CHUNK))](
        out,
        live,
        state.arenas,
        state.report,
        place.base,
        place.y,
        hidden,
        len(state.arenas),
        BF16=place.is_bf16,
        CHUNK=CHUNK,
        num_warps=4,
    )
    return out
