"""Root-mean-square normalisation."""

from __future__ import annotations

from collections.abc import Callable

import torch
import trimaran_kernels
from torch import Tensor
from torch.nn.functional import rms_norm

from trimaran_attn.registry import Site


class RMSNorm:
    """x / rms(x) × weight over the last dimension, computed in float32, returned in x's type.

    Args:
        weight: float32 [n].
        eps: added to the mean of squares.
    """

    def __init__(self, weight: Tensor, eps: float) -> None:
        self.weight = weight
        self.eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        """x: [T, n]."""
        return rms_norm(x.float(), self.weight.shape, self.weight, self.eps).to(x.dtype)

    def after_adding(self, x: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        """x, delta: [T, n] → x + delta, and its norm."""
        total = x + delta
        return total, self(total)


class NativeRMSNorm(RMSNorm):
    """The same in one call, for float32 on the CPU."""

    def __init__(self, weight: Tensor, eps: float, pool: trimaran_kernels.ThreadPool) -> None:
        super().__init__(weight, eps)
        self._native_weight = weight.numpy()
        self._pool = pool

    def __call__(self, x: Tensor) -> Tensor:
        """x: [T, n]."""
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        values = x.contiguous().numpy()
        trimaran_kernels.rms_norm(self._pool, values, self._native_weight, self.eps, out.numpy())
        return out


def build_norm(
    site: Site,
    pool: trimaran_kernels.ThreadPool | None = None,
    gpu: Callable[[Tensor, float], RMSNorm] | None = None,
) -> RMSNorm:
    """Keeps its weight in float32: it is small, and rounding it would be visible.

    Args:
        site: where.
        pool: threads of the native kernel; without them torch computes.
        gpu: makes a GPU's norm of the weight and eps.
    """
    weight = site.weights.dense(site.path, site.shape).to(site.device)
    if pool is not None and site.runs_native:
        return NativeRMSNorm(weight, site.spec.rms_eps, pool)
    return (gpu or RMSNorm)(weight, site.spec.rms_eps)
