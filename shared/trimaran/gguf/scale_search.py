"""Search for the scale (and minimum) of a group of values that loses least when the group is rounded.

Each search rounds the group under several candidate scales, then fits the best scale to the rounded values by
weighted least squares, and keeps the best candidate. Large values weigh more: they carry more of a product.
Groups are rows: float32 [m, size].
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from trimaran.gguf.quantize_blocks import inverse

Floats = NDArray[np.float32]

AFFINE_STEPS = np.arange(-1.0, 1.01, 0.1)
SYMMETRIC_STEPS = np.arange(-0.9, 0.91, 0.1)
LEVEL_STEPS = np.arange(-7.0, 8.0)
SAME_VALUE = np.float32(1e-6)
"""A variance this much below the mean square is rounding noise."""


def affine(x: Floats, most: int) -> tuple[Floats, Floats]:
    """x ≈ scale · q - low with q in 0..most and low ≥ 0; returns scale [m] and low [m], neither negative."""
    weights = _weights(x)
    bottom = np.minimum(x.min(axis=1, keepdims=True), 0)
    unit = inverse(x.max(axis=1, keepdims=True) - bottom)
    best_scale, best_low = np.zeros(len(x), np.float32), -bottom[:, 0]
    best_error = _error(x, weights, best_scale, best_low, np.zeros_like(x))
    for step in AFFINE_STEPS:
        q = np.rint((x - bottom) * (unit * np.float32(most + step))).clip(0, most)
        scale, low = _fit_affine(x, weights, q)
        error = _error(x, weights, scale, low, q)
        better = error < best_error
        best_error = np.where(better, error, best_error)
        best_scale, best_low = np.where(better, scale, best_scale), np.where(better, low, best_low)
    return best_scale, best_low


def symmetric(x: Floats, half: int) -> Floats:
    """x ≈ scale · q with q in -half..half-1; returns scale [m], of either sign.

    The extreme value goes to -half, the end that reaches further, hence the sign.
    """
    unit = inverse(_extreme(x))
    candidates = (unit * np.float32(-(half + step)) for step in SYMMETRIC_STEPS)
    return _best_fit(x, (np.rint(x * by).clip(-half, half - 1) for by in candidates))


def to_levels(x: Floats, levels: Floats) -> Floats:
    """x ≈ scale · level, for sorted levels; returns scale [m], of either sign."""
    unit = inverse(_extreme(x))
    candidates = (unit * (levels[0] + np.float32(step)) for step in LEVEL_STEPS)
    return _best_fit(x, (levels[nearest(x * by, levels)] for by in candidates))


def nearest(x: Floats, levels: Floats) -> NDArray[np.uint8]:
    """Index of the level next to each value."""
    borders = (levels[1:] + levels[:-1]) / 2
    return np.searchsorted(borders, x).astype(np.uint8)


def signed_extreme(x: Floats) -> Floats:
    """The value of the largest magnitude in each row, with its sign, [m]."""
    return _extreme(x)[:, 0]


def _extreme(x: Floats) -> Floats:
    return np.take_along_axis(x, np.abs(x).argmax(axis=1, keepdims=True), axis=1)


def _weights(x: Floats) -> Floats:
    """|x| + its root mean square in the row; ones for a row of zeros."""
    size = np.sqrt(np.square(x).mean(axis=1, keepdims=True))
    return np.where(size > 0, np.abs(x) + size, np.float32(1))


def _fit_affine(x: Floats, weights: Floats, q: Floats) -> tuple[Floats, Floats]:
    """The scale and low of least weighted squares.

    Where low would be negative, or all q are equal and any low would do: the best scale with low 0.
    """
    total, sum_q, sum_x = _dots(weights, q, x)
    sum_qq, sum_qx = _dot(weights * q, q), _dot(weights * q, x)
    determinant = total * sum_qq - sum_q * sum_q
    scale = _ratio(total * sum_qx - sum_x * sum_q, determinant)
    low = _ratio(sum_q * sum_qx - sum_qq * sum_x, determinant)
    through_zero = _ratio(sum_qx, sum_qq)
    outside = (low < 0) | (determinant <= SAME_VALUE * total * sum_qq)
    return np.where(outside, through_zero, scale), np.where(outside, np.float32(0), low)


def _error(x: Floats, weights: Floats, scale: Floats, low: Floats, q: Floats) -> Floats:
    difference = scale[:, None] * q - low[:, None] - x
    return _dot(weights * difference, difference)


def _best_fit(x: Floats, roundings: Iterable[Floats]) -> Floats:
    """Of several roundings q of x, the scale for which scale · q comes closest to x."""
    weights = _weights(x)
    best_scale, best_gain = np.zeros(len(x), np.float32), np.zeros(len(x), np.float32)
    for q in roundings:
        weighted = weights * q
        sum_qx, sum_qq = _dot(weighted, x), _dot(weighted, q)
        scale = _ratio(sum_qx, sum_qq)
        gain = scale * sum_qx  # how much the squared error falls from that of scale 0
        better = gain > best_gain
        best_scale, best_gain = np.where(better, scale, best_scale), np.where(better, gain, best_gain)
    return best_scale


def _dot(a: Floats, b: Floats) -> Floats:
    """Row-wise products."""
    result: Floats = np.einsum("ij,ij->i", a, b)
    return result


def _dots(weights: Floats, q: Floats, x: Floats) -> tuple[Floats, Floats, Floats]:
    return weights.sum(axis=1), _dot(weights, q), _dot(weights, x)


def _ratio(a: Floats, b: Floats) -> Floats:
    """a / b, and 0 where b is not positive."""
    return np.divide(a, b, out=np.zeros_like(a), where=b > 0)
