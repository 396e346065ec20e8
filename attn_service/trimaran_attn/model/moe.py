"""A mixture-of-experts layer: routed experts elsewhere, shared experts meanwhile here."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from trimaran_attn.experts import SKIPPED, Experts, NativeExperts
from trimaran_attn.model.deferral import deferred_by, split_lightest
from trimaran_attn.model.gate import Gate, NativeGate
from trimaran_attn.model.kinds import EXPERTS, GATE, LINEAR
from trimaran_attn.model.kinds import MLP as MLP_KIND
from trimaran_attn.model.mlp import MLP, FeedForward, NativeFeedForward, NativeNetwork, Pending
from trimaran_attn.model.step import Step
from trimaran_attn.registry import Site


class MoE:
    """Sum of the routed experts' weighted outputs and the shared experts' output.

    With deferral the sum takes the layer before's deferred outputs in, and leaves its own to the next layer.

    Args:
        overlap: whether the shared ones are computed while the routed ones are: right where these have cores
            of their own. Two pools of threads on the same cores preempt each other for whole time slices.
        defer: how many of a token's experts the next layer adds.
    """

    def __init__(
        self,
        layer: int,
        gate: Gate,
        experts: Experts,
        shared: FeedForward | None,
        *,
        overlap: bool,
        defer: int = 0,
    ) -> None:
        self._layer = layer
        self._gate = gate
        self._experts = experts
        self._shared = shared
        self._overlap = overlap
        self._defer = defer

    def native(self) -> NativeNetwork | None:
        """See `NativeFeedForward`."""
        gate, experts, shared = self._gate, self._experts, self._shared
        if self._defer or not isinstance(gate, NativeGate) or not isinstance(experts, NativeExperts):
            return None
        if shared is None:
            return NativeNetwork(gate=gate.kernel, experts=experts)
        beside = shared.native() if isinstance(shared, NativeFeedForward) else None
        if beside is None or beside.gate is not None:
            return None
        return NativeNetwork(beside.always, gate.kernel, experts)

    def begin(self, x: Tensor, step: Step) -> Pending:
        """Route x and submit it."""
        with step.tracer.span("gate", self._layer):
            ids, weights = self._gate(x)
            ids = _without_padding(ids, step)
        earlier = step.deferred.pop(self._layer - 1, None)
        with step.tracer.span("submit", self._layer):
            ticket = self._submit(x, ids, weights, step)
        return partial(self._finish, x, ticket, earlier, step)

    def _submit(self, x: Tensor, ids: Tensor, weights: Tensor, step: Step) -> Any:
        """Submit all experts, or those of now first: who waits for the others has a layer's time."""
        if not self._defer:
            return self._experts.submit(self._layer, x, ids, weights)
        now, later = split_lightest(ids, weights, self._defer)
        ticket = self._experts.submit(self._layer, x, now, weights)
        step.deferred[self._layer] = self._experts.submit(self._layer, x, later, weights)
        return ticket

    def _finish(self, x: Tensor, ticket: Any, earlier: Any, step: Step) -> Tensor:
        """The layer before's deferred experts + this one's + the shared ones, added in this order."""
        shared = None
        if self._shared is not None and self._overlap:
            shared = self._compute_shared(self._shared, x, step)
        routed = self._wait(x, ticket, step)
        if earlier is not None:
            routed = self._wait(x, earlier, step) + routed
        if self._shared is not None and shared is None:
            shared = self._compute_shared(self._shared, x, step)
        return routed if shared is None else routed + shared

    def _compute_shared(self, shared: FeedForward, x: Tensor, step: Step) -> Tensor:
        with step.tracer.span("shared experts", self._layer):
            return shared.begin(x, step)()

    def _wait(self, x: Tensor, ticket: Any, step: Step) -> Tensor:
        with step.tracer.span("wait", self._layer):
            return self._experts.wait(ticket).to(x.device, x.dtype)


def _without_padding(ids: Tensor, step: Step) -> Tensor:
    """Rows of padding ask no expert, wherever it is."""
    rows = step.batch.decode
    if rows is None:
        return ids
    padding = step.once("padding", lambda: rows.requests[:, None] >= rows.live)
    return ids.masked_fill(padding, SKIPPED)


def build_moe(site: Site, defer: int = 0) -> MoE:
    """A layer's gate, its way to the routed experts, and its shared experts.

    Args:
        site: where.
        defer: how many of a token's experts a layer leaves to the next one, if that has experts too.
    """
    spec = site.spec
    shape = (spec.moe.n_experts, spec.hidden_size)
    return MoE(
        site.layer,
        site.child("gate", GATE, shape),
        site.child("experts", EXPERTS),
        site.child("shared_experts", MLP_KIND) if spec.moe.n_shared else None,
        overlap=site.device.type != "cpu",
        defer=deferred_by(spec, site.layer, defer),
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
