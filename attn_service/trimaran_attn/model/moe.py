"""A mixture-of-experts layer: routed experts elsewhere, shared experts meanwhile here."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from trimaran_attn.experts import Experts
from trimaran_attn.model.gate import Gate
from trimaran_attn.model.kinds import EXPERTS, GATE, LINEAR
from trimaran_attn.model.kinds import MLP as MLP_KIND
from trimaran_attn.model.mlp import MLP, FeedForward, Pending
from trimaran_attn.model.step import Step
from trimaran_attn.registry import Site


class MoE:
    """Sum of the routed experts' weighted outputs and the shared experts' output.

    Args:
        overlap: whether the shared ones are computed while the routed ones are: right where these have cores
            of their own. Two pools of threads on the same cores preempt each other for whole time slices.
    """

    def __init__(
        self, layer: int, gate: Gate, experts: Experts, shared: FeedForward | None, *, overlap: bool
    ) -> None:
        self._layer = layer
        self._gate = gate
        self._experts = experts
        self._shared = shared
        self._overlap = overlap

    def begin(self, x: Tensor, step: Step) -> Pending:
        """Route x and submit it."""
        with step.tracer.span("gate", self._layer):
            ids, weights = self._gate(x)
        with step.tracer.span("submit", self._layer):
            ticket = self._experts.submit(self._layer, x, ids, weights)
        return partial(self._finish, x, ticket, step)

    def _finish(self, x: Tensor, ticket: Any, step: Step) -> Tensor:
        if self._shared is None:
            return self._wait(x, ticket, step)
        if self._overlap:
            shared = self._compute_shared(self._shared, x, step)
            return self._wait(x, ticket, step) + shared
        routed = self._wait(x, ticket, step)
        return routed + self._compute_shared(self._shared, x, step)

    def _compute_shared(self, shared: FeedForward, x: Tensor, step: Step) -> Tensor:
        with step.tracer.span("shared experts", self._layer):
            return shared.begin(x, step)()

    def _wait(self, x: Tensor, ticket: Any, step: Step) -> Tensor:
        with step.tracer.span("wait", self._layer):
            return self._experts.wait(ticket).to(x.device, x.dtype)


def build_moe(site: Site) -> MoE:
    """A layer's gate, its way to the routed experts, and its shared experts."""
    spec = site.spec
    shape = (spec.moe.n_experts, spec.hidden_size)
    return MoE(
        site.layer,
        site.child("gate", GATE, shape),
        site.child("experts", EXPERTS),
        site.child("shared_experts", MLP_KIND) if spec.moe.n_shared else None,
        overlap=site.device.type != "cpu",
    )


def build_mlp(site: Site) -> MLP:
    """The dense network at `…mlp`, or the shared experts below it, which are stored as one wider expert."""
    spec = site.spec
    shared = site.path.endswith("shared_experts")
    width = spec.moe.n_shared * spec.moe.intermediate_size if shared else spec.dense_intermediate_size
    return MLP(
        site.child("gate_proj", LINEAR, (width, spec.hidden_size)),
        site.child("up_proj", LINEAR, (width, spec.hidden_size)),
        site.child("down_proj", LINEAR, (spec.hidden_size, width)),
    )
