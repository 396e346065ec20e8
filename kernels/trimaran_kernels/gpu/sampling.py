"""The next token of each row of logits, drawn where they are.

Probabilities are relative to the likeliest token's and summed as integers, in units of 2^-44: so a sum does
not depend on its order, and no GPU needs float64 for it. Top-k, top-p and min-p each keep the first tokens in
order of probability (equal ones in order of id); the kept ones' mass is all that has to be known of them,
since the draw walks in the same order until it has passed its share of that mass.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from trimaran_kernels.gpu.sampling_inputs import LARGEST_VOCAB, NOT_FINITE, NOT_WANTED, DrawInputs

MASS_BITS = 44
WIDEST_BLOCK = 4096
FLOORS = (0.0009118819655545162, 8.315287191035679e-07)
"""e^-7 and e^-14. Only tokens above the first one are searched if all that is kept is among them, or only
those above the second one."""

_UNIT = tl.constexpr(float(1 << MASS_BITS))
_HIGH, _LOW = (tl.constexpr(floor) for floor in FLOORS)
_BAD, _SKIPPED = tl.constexpr(NOT_FINITE), tl.constexpr(NOT_WANTED)
_NO_ID = tl.constexpr(1 << 30)
_INF = tl.constexpr(float("inf"))
_LOWEST = tl.constexpr(-33.0)  # e^-33 is less than a mass of 1


@triton.jit
def relative_exp(x):
    """e^x of x ≤ 0 in float32, within an ulp; 0 where its mass would be."""
    x = tl.maximum(x, _LOWEST)
    n = tl.floor(x * 1.4426950408889634 + 0.5)
    r = x - n * 0.693359375  # ln 2 in two parts: the first one's product is exact
    r = r + n * 2.1219444005469057e-4
    series = 1.0 / 720 + r * (1.0 / 5040)
    series = 1.0 / 24 + r * (1.0 / 120 + r * series)
    series = 1.0 + r * (1.0 + r * (0.5 + r * (1.0 / 6 + r * series)))
    power = ((n.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)
    return tl.where(x > _LOWEST, series * power, 0.0)


@triton.jit
def _mass(weight):
    """A weight of 0 to 1 in units."""
    return (weight * _UNIT).to(tl.int64)


@triton.jit
def _weights(logits, start, vocab, best, temperature, BLOCK: tl.constexpr):
    """Of the tokens from `start` on: e^((logit - best) / temperature), 0 beyond the vocabulary."""
    column = start + tl.arange(0, BLOCK)
    value = tl.load(logits + column, mask=column < vocab, other=-_INF)
    return relative_exp(tl.math.div_rn(value - best, tl.full([BLOCK], 0, tl.float32) + temperature))


@triton.jit
def _largest(logits, vocab, BLOCK: tl.constexpr):
    """The largest logit, the first token that has it, and how many are not finite."""
    lane = tl.arange(0, BLOCK)
    best = tl.full([BLOCK], -_INF, tl.float32)
    first = tl.full([BLOCK], _NO_ID, tl.int32)
    bad = tl.zeros([BLOCK], tl.int32)
    for start in range(0, vocab, BLOCK):
        column = start + lane
        there = column < vocab
        value = tl.load(logits + column, mask=there, other=-_INF)
        bad += tl.where(there & ~(tl.abs(value) < _INF), 1, 0)
        better = value > best
        best = tl.where(better, value, best)
        first = tl.where(better, column, first)
    most = tl.max(best, 0)
    return most, tl.min(tl.where(best == most, first, _NO_ID), 0), tl.sum(bad, 0)


@triton.jit
def _survey(logits, vocab, best, temperature, BLOCK: tl.constexpr):
    """The mass of all; mass and number of the tokens above each floor."""
    all_mass = tl.zeros([BLOCK], tl.int64)
    high_mass = tl.zeros([BLOCK], tl.int64)
    low_mass = tl.zeros([BLOCK], tl.int64)
    high_count = tl.zeros([BLOCK], tl.int32)
    low_count = tl.zeros([BLOCK], tl.int32)
    for start in range(0, vocab, BLOCK):
        weight = _weights(logits, start, vocab, best, temperature, BLOCK)
        mass = _mass(weight)
        all_mass += mass
        high_mass += tl.where(weight >= _HIGH, mass, 0)
        low_mass += tl.where(weight >= _LOW, mass, 0)
        high_count += tl.where(weight >= _HIGH, 1, 0)
        low_count += tl.where(weight >= _LOW, 1, 0)
    return (
        tl.sum(all_mass, 0), tl.sum(high_mass, 0), tl.sum(low_mass, 0),
        tl.sum(high_count, 0), tl.sum(low_count, 0),
    )  # fmt: skip


@triton.jit
def _share_of(mass, share):
    """A share of a mass, below the mass itself."""
    return tl.minimum((mass.to(tl.float64) * share).to(tl.int64), mass - 1)


@triton.jit
def _draw_in_order(logits, vocab, best, temperature, goal, BLOCK: tl.constexpr):
    """The first token at which the mass, summed in order of id, exceeds the goal."""
    at = tl.zeros([], tl.int32)
    rest = goal
    before = tl.zeros([], tl.int64)
    for start in range(0, vocab, BLOCK):
        after = before + tl.sum(_mass(_weights(logits, start, vocab, best, temperature, BLOCK)), 0)
        # The last such block holds the token. Were the sums to end too early: the last one with any mass.
        here = (before <= goal) & (before < after)
        at = tl.where(here, start, at)
        rest = tl.where(here, goal - before, rest)
        before = after
    masses = _mass(_weights(logits, at, vocab, best, temperature, BLOCK))
    place = tl.sum(tl.where(tl.cumsum(masses, 0) <= rest, 1, 0), 0)
    # Likewise within the block.
    return at + tl.minimum(place, tl.max(tl.where(masses > 0, tl.arange(0, BLOCK), 0), 0))


@triton.jit
def _gather(logits, vocab, best, temperature, floor, keys, ids, BLOCK: tl.constexpr):
    """Writes the tokens that reach the floor, in order of id: their weights' bits and their ids; how many."""
    n = tl.zeros([], tl.int32)
    for start in range(0, vocab, BLOCK):
        weight = _weights(logits, start, vocab, best, temperature, BLOCK)
        found = (weight >= floor) & (_mass(weight) > 0)
        ones = tl.where(found, 1, 0)
        place = n + tl.cumsum(ones, 0) - ones
        tl.store(keys + place, weight.to(tl.int32, bitcast=True), mask=found)
        tl.store(ids + place, start + tl.arange(0, BLOCK), mask=found)
        n += tl.sum(ones, 0)
    tl.debug_barrier()
    return n


@triton.jit
def _sizes(keys, start, n, COUNTS: tl.constexpr, BLOCK: tl.constexpr):
    """Some tokens' keys, and their masses, or 1 for each."""
    place = start + tl.arange(0, BLOCK)
    key = tl.load(keys + place, mask=place < n, other=0)
    if COUNTS:
        return key, tl.where(place < n, 1, 0).to(tl.int64)
    else:
        return key, _mass(key.to(tl.float32, bitcast=True))


@triton.jit
def _border(keys, n, goal, COUNTS: tl.constexpr, BLOCK: tl.constexpr):
    """The largest key that, with all larger ones, has more than the goal: two bits of it at a time."""
    border = tl.zeros([], tl.int32)
    for step in range(15):
        shift = 28 - 2 * step
        over1 = tl.zeros([BLOCK], tl.int64)
        over2 = tl.zeros([BLOCK], tl.int64)
        over3 = tl.zeros([BLOCK], tl.int64)
        for start in range(0, n, BLOCK):
            key, size = _sizes(keys, start, n, COUNTS, BLOCK)
            over1 += tl.where(key >= border + (1 << shift), size, 0)
            over2 += tl.where(key >= border + (2 << shift), size, 0)
            over3 += tl.where(key >= border + (3 << shift), size, 0)
        digit = tl.where(tl.sum(over1, 0) > goal, 1, 0)
        digit += tl.where(tl.sum(over2, 0) > goal, 1, 0)
        digit += tl.where(tl.sum(over3, 0) > goal, 1, 0)
        border += digit << shift
    return border


@triton.jit
def _above(keys, n, border, COUNTS: tl.constexpr, BLOCK: tl.constexpr):
    """The mass, or the number, of the tokens whose keys are larger."""
    total = tl.zeros([BLOCK], tl.int64)
    for start in range(0, n, BLOCK):
        key, size = _sizes(keys, start, n, COUNTS, BLOCK)
        total += tl.where(key > border, size, 0)
    return tl.sum(total, 0)


@triton.jit
def _nth_with(keys, ids, n, border, nth, BLOCK: tl.constexpr):
    """The id of the nth token, from 0, that has this very key."""
    token = tl.zeros([], tl.int32)
    seen = tl.zeros([], tl.int64)
    for start in range(0, n, BLOCK):
        place = start + tl.arange(0, BLOCK)
        key = tl.load(keys + place, mask=place < n, other=-1)
        one = tl.where(key == border, 1, 0).to(tl.int64)
        wanted = (one > 0) & (seen + tl.cumsum(one, 0) - one == nth)
        token += tl.sum(tl.where(wanted, tl.load(ids + place, mask=wanted, other=0), 0), 0)
        seen += tl.sum(one, 0)
    return token


@triton.jit
def _mass_of_first(keys, n, mass, top_k, BLOCK: tl.constexpr):
    """The mass of the first `top_k` tokens; of all n if there are no more."""
    if top_k < n:
        border = _border(keys, n, top_k.to(tl.int64) - 1, True, BLOCK)
        ties = top_k - _above(keys, n, border, True, BLOCK)
        one = _mass(border.to(tl.float32, bitcast=True))
        mass = _above(keys, n, border, False, BLOCK) + ties * one
    return mass


@triton.jit
def _mass_to_reach(keys, n, mass, found, top_p, BLOCK: tl.constexpr):
    """The mass of as many of the first tokens as it takes to reach the share `top_p` of a mass.

    found: the mass of all n, no more can be reached.
    """
    if top_p < 1.0:
        goal = tl.maximum(tl.minimum(tl.ceil(mass.to(tl.float64) * top_p).to(tl.int64), found), 1)
        border = _border(keys, n, goal - 1, False, BLOCK)
        above = _above(keys, n, border, False, BLOCK)
        one = _mass(border.to(tl.float32, bitcast=True))
        mass = above + (goal - above + one - 1) // one * one
    return mass


@triton.jit
def _mass_from(keys, n, mass, min_p, BLOCK: tl.constexpr):
    """The mass of the tokens whose weight is at least `min_p`, at most `mass`."""
    if min_p > 0.0:
        border = min_p.to(tl.int32, bitcast=True) - 1
        mass = tl.minimum(mass, _above(keys, n, border, False, BLOCK))
    return mass


@triton.jit
def draw_kernel(
    logits, temperatures, top_ks, top_ps, min_ps, shares, out, keys, ids, vocab, BLOCK: tl.constexpr
):  # fmt: skip
    """One row: its token."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * vocab
    keys += row * vocab
    ids += row * vocab
    temperature = tl.load(temperatures + row)
    token = tl.full([], _SKIPPED, tl.int32)
    if temperature >= 0:
        best, token, n_bad = _largest(logits, vocab, BLOCK)
        if n_bad > 0:
            token = tl.full([], _BAD, tl.int32)
        elif temperature > 0:
            top_k = tl.load(top_ks + row)
            top_p = tl.load(top_ps + row)
            min_p = tl.load(min_ps + row)
            share = tl.load(shares + row)
            mass, high_mass, low_mass, n_high, n_low = _survey(logits, vocab, best, temperature, BLOCK)
            if (top_k == 0) & (top_p >= 1.0) & (min_p == 0.0):
                token = _draw_in_order(logits, vocab, best, temperature, _share_of(mass, share), BLOCK)
            else:
                if top_k > 0:
                    high_holds = n_high >= top_k
                    low_holds = n_low >= top_k
                else:
                    goal = mass.to(tl.float64) * top_p
                    high_holds = (high_mass.to(tl.float64) >= goal) | (min_p >= _HIGH)
                    low_holds = (low_mass.to(tl.float64) >= goal) | (min_p >= _LOW)
                floor = tl.where(high_holds, _HIGH, tl.where(low_holds, _LOW, 0.0))
                n = _gather(logits, vocab, best, temperature, floor, keys, ids, BLOCK)
                found = _above(keys, n, 0, False, BLOCK)
                if top_k > 0:
                    mass = _mass_of_first(keys, n, found, top_k, BLOCK)
                mass = tl.minimum(_mass_to_reach(keys, n, mass, found, top_p, BLOCK), found)
                mass = _mass_from(keys, n, mass, min_p, BLOCK)
                goal = _share_of(mass, share)
                border = _border(keys, n, goal, False, BLOCK)
                nth = (goal - _above(keys, n, border, False, BLOCK)) // _mass(
                    border.to(tl.float32, bitcast=True)
                )
                token = _nth_with(keys, ids, n, border, nth, BLOCK)
    tl.store(out + row, token)


def draw(logits: Tensor, wanted: DrawInputs, out: Tensor) -> Tensor:
    """Draw a token of each row, in the stream's order.

    Args:
        logits: [R, vocab] float32, contiguous, vocab at most `LARGEST_VOCAB`; left as they are.
        wanted: how; of R rows.
        out: int32 [R], to be written: tokens, `NOT_FINITE` or `NOT_WANTED`.

    Raises:
        ValueError: the vocabulary is larger.
    """
    n, vocab = logits.shape
    if vocab > LARGEST_VOCAB:
        raise ValueError(
            f"tokens of a vocabulary of {vocab} cannot be drawn on the GPU: {LARGEST_VOCAB} at most"
        )
    if n == 0:
        return out
    scratch = torch.empty(2, n, vocab, dtype=torch.int32, device=logits.device)
    block = min(WIDEST_BLOCK, triton.next_power_of_2(vocab))
    draw_kernel[(n,)](
        logits,
        wanted.temperatures,
        wanted.top_ks,
        wanted.top_ps,
        wanted.min_ps,
        wanted.shares,
        out,
        scratch[0],
        scratch[1],
        vocab,
        BLOCK=block,
        num_warps=16 if block == WIDEST_BLOCK else 4,
        enable_fp_fusion=False,  # the same weights wherever they are computed: sums of them must agree
    )
    return out
