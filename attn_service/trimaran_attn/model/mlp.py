"""SwiGLU: the dense layers' feed-forward network, and the shared experts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from trimaran_attn.model.linear import Linear, swiglu
from trimaran_attn.model.step import Step

Pending = Callable[[], Tensor]
"""Waits for [T, hidden]; to be called once."""


class FeedForward(Protocol):
    """The second half of a layer."""

    def begin(self, x: Tensor, step: Step) -> Pending:
        """x: [T, hidden] → [T, hidden], part of which may be computed elsewhere until it is waited for."""
        ...


class MLP:
    """down(silu(gate(x)) × up(x))."""

    def __init__(self, gate: Linear, up: Linear, down: Linear) -> None:
        self._hidden = swiglu(gate, up)
        self._down = down

    def __call__(self, x: Tensor) -> Tensor:
        """x: [T, hidden] → [T, hidden]."""
        return self._down(self._hidden(x))

    def begin(self, x: Tensor, step: Step) -> Pending:
        """All of it at once."""
        del step  # nothing of it is computed elsewhere
        y = self(x)
        return lambda: y
