"""Rotary position embedding of interleaved pairs, with YaRN (arXiv 2309.00071) for long contexts."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from trimaran.spec import RopeSpec


class Rope:
    """Rotates pairs (x0, x1), (x2, x3), … by position × frequency.

    Args:
        spec: GGUF `rope.*`.
        dim: how many values are rotated, even.
    """

    def __init__(self, spec: RopeSpec, dim: int, device: torch.device) -> None:
        self._frequencies = _frequencies(spec, dim).to(device)
        self._amplitude = amplitude(spec)

    def angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """positions: [T] → cosines and sines, each [T, dim / 2] float32."""
        angles = positions.float()[:, None] * self._frequencies
        return angles.cos() * self._amplitude, angles.sin() * self._amplitude


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs of x: [T, heads, dim] by cos, sin: [T, dim / 2]; same shape and type."""
    even, odd = x.float().view(*x.shape[:-1], -1, 2).unbind(-1)
    cos, sin = cos[:, None], sin[:, None]
    rotated = torch.stack((even * cos - odd * sin, odd * cos + even * sin), -1)
    return rotated.flatten(-2).to(x.dtype)


def amplitude(spec: RopeSpec) -> float:
    """Factor on cosines and sines: YaRN's mscale / mscale_all_dim.

    DeepSeek's models have both equal, so it is 1; the file then tells `yarn_log_multiplier`, and the factor
    is in `softmax_scale` instead. Without that key it is YaRN's own 0.1·ln(factor) + 1.
    """
    if spec.factor <= 1 or spec.log_multiplier:
        return 1.0
    return 0.1 * math.log(spec.factor) + 1


def softmax_scale(spec: RopeSpec, head_dim: int) -> float:
    """head_dim^-0.5 × (log_multiplier·ln(factor) + 1)²: arXiv 2405.04434, with YaRN's correction."""
    mscale = 1 + spec.log_multiplier * math.log(max(spec.factor, 1.0))
    return float(head_dim**-0.5 * mscale**2)


def _frequencies(spec: RopeSpec, dim: int) -> Tensor:
    """Radians per position of each pair, [dim / 2] float32."""
    exponents = torch.arange(0, dim, 2, dtype=torch.float32) / dim
    plain = 1.0 / spec.theta**exponents
    if spec.factor <= 1:
        return plain
    interpolated = _interpolation(spec, dim)
    return plain / spec.factor * interpolated + plain * (1 - interpolated)


def _interpolation(spec: RopeSpec, dim: int) -> Tensor:
    """How far each pair is slowed down, [dim / 2] from 0 (not at all: it turns fast) to 1 (by the factor)."""
    low = max(math.floor(_pair_of_rotations(spec.beta_fast, spec, dim)), 0)
    high = min(math.ceil(_pair_of_rotations(spec.beta_slow, spec, dim)), dim - 1)
    pairs = torch.arange(dim // 2, dtype=torch.float32)
    return ((pairs - low) / max(high - low, 0.001)).clamp(0, 1)


def _pair_of_rotations(rotations: float, spec: RopeSpec, dim: int) -> float:
    """The (fractional) pair that turns so many times over the original context."""
    wavelength = spec.original_context / (rotations * 2 * math.pi)
    return dim * math.log(wavelength) / (2 * math.log(spec.theta))
