"""The routed experts as the model sees them: submit a layer's tokens, do something else, wait."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.functional import linear, silu
from trimaran.errors import TrimaranError
from trimaran_kernels.hop import CallGate

from trimaran_attn.registry import Site

SKIPPED = -1
"""In place of an expert id: this choice of the token is computed elsewhere."""


class Experts(Protocol):
    """Where routed experts are computed: another process, or `LocalExperts`."""

    def submit(self, layer: int, x: Tensor, ids: Tensor, weights: Tensor) -> Any:
        """Start one layer.

        Args:
            layer: index of the layer in the model.
            x: [T, hidden].
            ids: [T, top_k] int32. -1 skips this place, whatever its weight; a token without others gets 0.
            weights: [T, top_k] float32.

        Returns:
            A ticket for `wait`.

        Raises:
            PeerError: the experts are not reachable.
        """
        ...

    def wait(self, ticket: Any) -> Tensor:
        """The weighted sum over each token's experts, [T, hidden]; raises PeerError if it does not come."""
        ...


@runtime_checkable
class NativeExperts(Protocol):
    """Experts that the kernels compute in this process, so that they may be part of a native call."""

    @property
    def calls(self) -> CallGate | None:
        """The way to all layers' experts; None while they are computed elsewhere, which may change."""
        ...

    def took(self, seconds: Sequence[float]) -> None:
        """How long each layer's experts took in a native call."""
        ...

    def error(self, status: int, layer: int) -> TrimaranError:
        """The error for a status other than OK."""
        ...


class LocalExperts:
    """All experts of a layer in this process, expanded to float32: the reference, for tests and tiny models.

    Args:
        layer: the layer it belongs to.
        gate, up: [experts, intermediate, hidden].
        down: [experts, hidden, intermediate].
    """

    def __init__(self, layer: int, gate: Tensor, up: Tensor, down: Tensor) -> None:
        self._layer = layer
        self._gate = gate
        self._up = up
        self._down = down

    def submit(self, layer: int, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """Compute at once; the result is the ticket."""
        assert layer == self._layer
        x = x.float()
        y = torch.zeros_like(x)
        for expert in sorted(set(ids.flatten().tolist()) - {SKIPPED}):
            token, place = torch.where(ids == expert)
            hidden = silu(linear(x[token], self._gate[expert])) * linear(x[token], self._up[expert])
            y.index_add_(0, token, linear(hidden, self._down[expert]) * weights[token, place, None])
        return y

    def wait(self, ticket: Tensor) -> Tensor:
        """The result."""
        return ticket


def build_local_experts(site: Site) -> LocalExperts:
    """Expand the routed experts of one layer."""
    moe, hidden = site.spec.moe, site.spec.hidden_size
    wide = (moe.n_experts, moe.intermediate_size, hidden)
    narrow = (moe.n_experts, hidden, moe.intermediate_size)
    return LocalExperts(
        site.layer,
        site.weights.dense(f"{site.path}.gate_proj", wide).to(site.device),
        site.weights.dense(f"{site.path}.up_proj", wide).to(site.device),
        site.weights.dense(f"{site.path}.down_proj", narrow).to(site.device),
    )
