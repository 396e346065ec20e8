"""A mixture-of-experts layer: routed experts elsewhere, shared experts meanwhile here."""

from __future__ import annotations

from torch import Tensor

from trimaran_attn.experts import Experts
from trimaran_attn.model.gate import Gate
from trimaran_attn.model.kinds import EXPERTS, GATE, LINEAR, MLP
from trimaran_attn.model.mlp import FeedForward, feed_forward
from trimaran_attn.registry import Site


class MoE:
    """Sum of the routed experts' weighted outputs and the shared experts' output."""

    def __init__(self, layer: int, gate: Gate, experts: Experts, shared: FeedForward | None) -> None:
        self._layer = layer
        self._gate = gate
        self._experts = experts
        self._shared = shared

    def __call__(self, x: Tensor) -> Tensor:
        """x: [T, hidden] → [T, hidden]."""
        ids, weights = self._gate(x)
        ticket = self._experts.submit(self._layer, x, ids, weights)
        shared = None if self._shared is None else self._shared(x)
        routed = self._experts.wait(ticket).to(x.device, x.dtype)
        return routed if shared is None else routed + shared


def build_moe(site: Site) -> MoE:
    """A layer's gate, its way to the routed experts, and its shared experts."""
    spec = site.spec
    shape = (spec.moe.n_experts, spec.hidden_size)
    return MoE(
        site.layer,
        site.child("gate", GATE, shape),
        site.child("experts", EXPERTS),
        site.child("shared_experts", MLP) if spec.moe.n_shared else None,
    )


def build_mlp(site: Site) -> FeedForward:
    """The dense network at `…mlp`, or the shared experts below it, which are stored as one wider expert."""
    spec = site.spec
    shared = site.path.endswith("shared_experts")
    width = spec.moe.n_shared * spec.moe.intermediate_size if shared else spec.dense_intermediate_size
    return feed_forward(
        site.child("gate_proj", LINEAR, (width, spec.hidden_size)),
        site.child("up_proj", LINEAR, (width, spec.hidden_size)),
        site.child("down_proj", LINEAR, (spec.hidden_size, width)),
    )
