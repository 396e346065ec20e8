"""Norms and gates in few launches. Needs Triton, so it is imported only where there is a GPU."""

from __future__ import annotations

from torch import Tensor
from trimaran.spec import MoeSpec
from trimaran_kernels.gpu.gate import GateRule, route
from trimaran_kernels.gpu.norm import add_rms_norm, rms_norm

from trimaran_attn.model.gate import Gate
from trimaran_attn.model.norm import RMSNorm


class GpuRMSNorm(RMSNorm):
    """One launch, with or without the addition before it."""

    def __call__(self, x: Tensor) -> Tensor:
        """x: [T, n]."""
        return rms_norm(x, self.weight, self.eps)

    def after_adding(self, x: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        """x, delta: [T, n] → x + delta, and its norm."""
        return add_rms_norm(x, delta, self.weight, self.eps)


class GpuGate(Gate):
    """Two launches: logits, and the choice. Equal ranks go by id.

    Args:
        spec, weight, bias: as of `Gate`.
    """

    def __init__(self, spec: MoeSpec, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(spec, weight, bias)
        self._rule = GateRule(
            n_experts=len(weight),
            top_k=spec.top_k,
            softmax=spec.gate == "softmax",
            n_groups=spec.n_groups,
            n_groups_used=spec.n_groups_used if spec.n_groups > 1 else 1,
            group_best=2 if spec.group_score == "top2" else 1,
            normalise=spec.normalise_weights,
            weights_scale=spec.weights_scale,
        )

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x: [T, hidden] → expert ids [T, top_k] int32, weights [T, top_k] float32."""
        return route(x.contiguous(), self._weight, self._bias, self._rule)
