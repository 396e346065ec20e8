"""What drawing on a GPU answers, in numpy: all tokens sorted, all sums in Python's integers."""

from __future__ import annotations

from itertools import accumulate

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from trimaran_kernels.gpu.sampling_inputs import NOT_FINITE, NOT_WANTED, DrawInputs

UNIT = 1 << 44


def draw_reference(logits: Tensor, wanted: DrawInputs) -> list[int]:
    """A token of each row of logits [R, vocab], `NOT_FINITE` or `NOT_WANTED`."""
    rows = zip(
        logits.cpu().numpy(),
        wanted.temperatures.tolist(),
        wanted.top_ks.tolist(),
        wanted.top_ps.tolist(),
        wanted.min_ps.tolist(),
        wanted.shares.tolist(),
        strict=True,
    )
    return [_draw(*row) for row in rows]


def _draw(
    logits: NDArray[np.float32], temperature: float, top_k: int, top_p: float, min_p: float, share: float
) -> int:
    if temperature < 0:
        return NOT_WANTED
    if not np.isfinite(logits).all():
        return NOT_FINITE
    if temperature == 0:
        return int(logits.argmax())
    scaled = (logits - logits.max()) / np.float32(temperature)
    weights = np.exp(scaled.astype(np.float64)).astype(np.float32)
    if top_k == 0 and top_p == 1 and min_p == 0:
        return _walk(weights, np.arange(len(weights)), share)
    order = np.argsort(-weights, kind="stable")
    if top_k:
        order = order[:top_k]
    if top_p < 1:
        goal = top_p * sum(_masses(weights[order]))
        order = order[[before < goal for before in _before(weights[order])]]
    return _walk(weights, order[weights[order] >= min_p], share)


def _masses(weights: NDArray[np.float32]) -> list[int]:
    return [int(float(weight) * UNIT) for weight in weights]


def _before(weights: NDArray[np.float32]) -> list[int]:
    """The mass before each token."""
    return list(accumulate(_masses(weights), initial=0))[:-1]


def _walk(weights: NDArray[np.float32], order: NDArray[np.int64], share: float) -> int:
    """The first token, in this order, at which the mass exceeds the share of all."""
    sums = list(accumulate(_masses(weights[order])))
    goal = min(int(share * sums[-1]), sums[-1] - 1)
    return int(order[next(place for place, total in enumerate(sums) if total > goal)])
