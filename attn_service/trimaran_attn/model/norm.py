"""Root-mean-square normalisation."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import rms_norm

from trimaran_attn.registry import Site


class RMSNorm:
    """x / rms(x) × weight over the last dimension, computed in float32, returned in x's type."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        self._weight = weight
        self._eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        """x: [..., n]."""
        return rms_norm(x.float(), self._weight.shape, self._weight, self._eps).to(x.dtype)


def build_norm(site: Site) -> RMSNorm:
    """Keeps its weight in float32: it is small, and rounding it would be visible."""
    return RMSNorm(site.weights.dense(site.path, site.shape).to(site.device), site.spec.rms_eps)
