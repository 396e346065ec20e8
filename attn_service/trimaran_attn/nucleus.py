"""The few tokens of a large vocabulary that top-k, top-p and min-p keep, without sorting all of it.

Weights are probabilities relative to the likeliest token's, which is 1. Tokens above a floor are looked at
first; only if they cannot be all that is kept, the floor goes down. So the work is a few passes over the
vocabulary, and a sort of some dozens of tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from trimaran.wire import SamplingParams

FLOORS = (math.exp(-7), math.exp(-9), math.exp(-11), math.exp(-14), 0.0)
"""Weights that are looked at first, then next; the last one is below none."""

BLOCK = 1024

Enough = Callable[[Tensor, float], bool]
"""Whether the weights above a floor (first argument) hold all that is to be kept; the floor is the second."""


def keep(weights: Tensor, params: SamplingParams) -> tuple[Tensor | None, Tensor]:
    """Ids and weights of the kept tokens, likeliest first, equal ones in order of id.

    Args:
        weights: float32 [vocab], the largest being 1.
        params: `top_k`, `top_p` and `min_p`, applied in this order.

    Returns:
        No ids: all tokens are kept, in order of id.
    """
    if params.top_k == 0 and params.top_p == 1 and params.min_p == 0:
        return None, weights
    total = float(weights.sum(dtype=torch.float64))
    ids, kept = _above_a_floor(weights, lambda found, floor: _is_enough(found, floor, params, total))
    if params.top_k:
        ids, kept = ids[: params.top_k], kept[: params.top_k]
        total = float(kept.sum())
    if params.top_p < 1:
        size = int((kept.cumsum(0) - kept < params.top_p * total).sum())
        ids, kept = ids[:size], kept[:size]
    if params.min_p > 0:
        size = int((kept >= params.min_p).sum())
        ids, kept = ids[:size], kept[:size]
    return ids, kept


def largest(logits: Tensor, best: float, count: int) -> tuple[Tensor, Tensor]:
    """Ids and values of the `count` largest logits, largest first, equal ones in order of id.

    Args:
        logits: float32 [vocab]. best: the largest of them.
    """
    ids = torch.arange(0)
    for floor in (best - 7, best - 14, -math.inf):
        ids = _at_least(logits, floor)
        if len(ids) >= count:
            break
    values, order = logits[ids].sort(descending=True, stable=True)
    return ids[order[:count]], values[:count]


def draw_place(weights: NDArray[np.float32], share: float) -> int:
    """The place at which the weights' sum, from the first on, exceeds `share` (0 to 1) of the whole.

    In float64, and first by blocks: most of a large vocabulary is then never summed one by one.
    """
    starts = np.arange(0, len(weights), BLOCK)
    block, rest = _exceeds(np.add.reduceat(weights, starts, dtype=np.float64), share)
    first = int(starts[block])
    sums = np.cumsum(weights[first : first + BLOCK], dtype=np.float64)
    # Rounding may take the draw to the very end: that is the last one with any weight.
    return first + min(int(sums.searchsorted(rest, "right")), int(sums.searchsorted(sums[-1])))


def _exceeds(sums: NDArray[np.float64], share: float) -> tuple[int, float]:
    """The block in which `share` of the whole is reached, and what of it is left when the block begins."""
    ends = sums.cumsum()
    goal = share * float(ends[-1])
    block = min(int(ends.searchsorted(goal, "right")), int(ends.searchsorted(ends[-1])))
    return block, goal - float(ends[block] - sums[block])


def _is_enough(found: Tensor, floor: float, params: SamplingParams, total: float) -> bool:
    if params.top_k:
        return len(found) >= params.top_k
    covers_top_p = params.top_p < 1 and float(found.sum()) >= params.top_p * total
    return covers_top_p or params.min_p >= floor


def _above_a_floor(weights: Tensor, is_enough: Enough) -> tuple[Tensor, Tensor]:
    ids, found = torch.arange(0), weights[:0].double()
    for floor in FLOORS:
        ids = _at_least(weights, floor)
        found = weights[ids].double()
        if is_enough(found, floor):
            break
    kept, order = found.sort(descending=True, stable=True)
    return ids[order], kept


def _at_least(values: Tensor, floor: float) -> Tensor:
    """Ids of the values that reach the floor; numpy finds them several times faster."""
    return torch.from_numpy(np.flatnonzero(values.numpy() >= floor))
