"""SwiGLU: the dense layers' feed-forward network, and the shared experts."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

from trimaran_attn.model.linear import Linear, swiglu


class FeedForward(Protocol):
    """The second half of a layer."""

    def __call__(self, x: Tensor) -> Tensor:
        """x: [T, hidden] → [T, hidden]."""
        ...


class MLP:
    """down(silu(gate(x)) × up(x))."""

    def __init__(self, gate: Linear, up: Linear, down: Linear) -> None:
        self._hidden = swiglu(gate, up)
        self._down = down

    def __call__(self, x: Tensor) -> Tensor:
        """x: [T, hidden] → [T, hidden]."""
        return self._down(self._hidden(x))


@runtime_checkable
class FusableMLP(Protocol):
    """A matrix that can be the gate of a network in one kernel."""

    def mlp_with(self, up: Linear, down: Linear) -> FeedForward | None:
        """down(silu(self(x)) × up(x)), or None if it does not fuse with these two."""
        ...


def feed_forward(gate: Linear, up: Linear, down: Linear) -> FeedForward:
    """down(silu(gate(x)) × up(x)), in one kernel where the three can be."""
    fused = gate.mlp_with(up, down) if isinstance(gate, FusableMLP) else None
    return fused or MLP(gate, up, down)
