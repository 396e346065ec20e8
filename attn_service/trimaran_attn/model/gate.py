"""Which experts each token goes to, and with what weights (arXiv 2405.04434 §2.1.2, 2412.19437 §2.1.2)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import trimaran_kernels
from torch import Tensor
from torch.nn.functional import linear
from trimaran.spec import MoeSpec

from trimaran_attn.registry import Site


class Gate:
    """Scores all experts and keeps `top_k`. Float32 throughout: a near tie must not turn on rounding.

    Args:
        spec: scoring, groups, normalisation, scale.
        weight: [experts, hidden] float32.
        bias: [experts] float32, or None; it takes part in the choice, not in the weights.
    """

    def __init__(self, spec: MoeSpec, weight: Tensor, bias: Tensor | None) -> None:
        self._spec = spec
        self._weight = weight
        self._bias = bias

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x: [T, hidden] → expert ids [T, top_k] int32, weights [T, top_k] float32."""
        logits = linear(x.float(), self._weight)
        scores = logits.softmax(-1) if self._spec.gate == "softmax" else logits.sigmoid()
        ranking = scores if self._bias is None else scores + self._bias
        if self._spec.n_groups > 1:
            ranking = self._mask_groups(ranking)
        ids = ranking.topk(self._spec.top_k, -1).indices
        weights = scores.gather(-1, ids)
        if self._spec.normalise_weights:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return ids.int(), weights * self._spec.weights_scale

    def _mask_groups(self, ranking: Tensor) -> Tensor:
        """Only experts of the best groups keep their place: the others get -inf."""
        groups = ranking.view(len(ranking), self._spec.n_groups, -1)
        best = groups.topk(2 if self._spec.group_score == "top2" else 1, -1).values.sum(-1)
        used = best.topk(self._spec.n_groups_used, -1).indices
        dropped = torch.ones_like(best, dtype=torch.bool).scatter_(-1, used, False)
        return groups.masked_fill(dropped[..., None], -torch.inf).flatten(-2)


class NativeGate(Gate):
    """The same for float32 on the CPU, in one call.

    Args:
        spec, weight, bias: as of `Gate`.
        pool: threads of the kernels.

    Attributes:
        kernel: what computes.
    """

    def __init__(
        self, spec: MoeSpec, weight: Tensor, bias: Tensor | None, pool: trimaran_kernels.ThreadPool
    ) -> None:
        super().__init__(spec, weight, bias)
        self._top_k = spec.top_k
        rule = trimaran_kernels.GateRule(
            n_experts=len(weight),
            top_k=spec.top_k,
            softmax=spec.gate == "softmax",
            n_groups=spec.n_groups,
            n_groups_used=spec.n_groups_used if spec.n_groups > 1 else 1,
            group_best=2 if spec.group_score == "top2" and spec.n_groups > 1 else 1,
            normalise=spec.normalise_weights,
            weights_scale=spec.weights_scale,
        )
        native_bias = None if bias is None else bias.numpy()
        self.kernel = trimaran_kernels.Gate(pool, rule, weight.numpy(), native_bias)

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x: [T, hidden] float32 → expert ids [T, top_k] int32, weights [T, top_k] float32."""
        ids = torch.empty(len(x), self._top_k, dtype=torch.int32)
        weights = torch.empty(len(x), self._top_k)
        self.kernel(x.contiguous().numpy(), ids.numpy(), weights.numpy())
        return ids, weights


def build_gate(
    site: Site,
    pool: trimaran_kernels.ThreadPool | None = None,
    gpu: Callable[[MoeSpec, Tensor, Tensor | None], Gate] | None = None,
) -> Gate:
    """Weights are float32 in the file and stay so. Shape: [experts, hidden].

    Args:
        site: where.
        pool: threads of the native kernels; without them torch computes.
        gpu: makes a GPU's gate of the rules, the weight and the bias.
    """
    weight = site.weights.dense(site.path, site.shape).to(site.device)
    bias = None
    bias_path = f"{site.path}.e_score_correction_bias"
    if site.weights.has(bias_path):
        bias = site.weights.dense(bias_path, site.shape[:1]).to(site.device)
    if pool is not None and site.runs_native:
        return NativeGate(site.spec.moe, weight, bias, pool)
    return (gpu or Gate)(site.spec.moe, weight, bias)
