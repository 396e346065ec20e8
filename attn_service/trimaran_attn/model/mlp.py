"""SwiGLU: the dense layers' feed-forward network, and the shared experts."""

from __future__ import annotations

from typing import Protocol

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
