"""Expert deferral: a token's lightest experts are added one layer later (docs/deferral.md)."""

from __future__ import annotations

from torch import Tensor
from trimaran.errors import ConfigError
from trimaran.spec import ModelSpec

from trimaran_attn.experts import SKIPPED


def check_deferral(spec: ModelSpec, defer: int) -> None:
    """Refuse to defer all of a token's experts.

    Raises:
        ConfigError: `defer` is not below the model's top_k.
    """
    if defer >= spec.moe.top_k:
        raise ConfigError(
            f"attn.defer_experts is {defer}, but {spec.name} uses {spec.moe.top_k} experts a token",
            remedy=f"at most {spec.moe.top_k - 1}, or 0 to defer none",
        )


def deferred_by(spec: ModelSpec, layer: int, defer: int) -> int:
    """How many experts of each token a layer defers: none where no layer of experts follows."""
    return defer if spec.n_dense_layers <= layer < spec.n_layers - 1 else 0


def split_lightest(ids: Tensor, weights: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Part each token's experts in those of now and the lightest `count`, of later.

    A row depends on itself only. Of equal weights the one that stands further behind is the lighter.

    Args:
        ids: [T, top_k] int32.
        weights: [T, top_k] float32.
        count: below top_k.

    Returns:
        Two tensors like `ids`; the places that are the other's hold `SKIPPED`.
    """
    order = weights.sort(dim=-1, descending=True, stable=True).indices
    lightest = order[:, order.shape[1] - count :]
    later = ids.new_zeros(ids.shape).scatter_(-1, lightest, 1).bool()
    return ids.masked_fill(later, SKIPPED), ids.masked_fill(~later, SKIPPED)
