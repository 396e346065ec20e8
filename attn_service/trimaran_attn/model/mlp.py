"""SwiGLU: the dense layers' feed-forward network, and the shared experts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor
from trimaran_kernels import ExpertEngine, Gate

from trimaran_attn.experts import NativeExperts
from trimaran_attn.model.linear import Linear, swiglu
from trimaran_attn.model.step import Step

Pending = Callable[[], Tensor]
"""Waits for [T, hidden]; to be called once."""


class FeedForward(Protocol):
    """The second half of a layer."""

    def begin(self, x: Tensor, step: Step) -> Pending:
        """x: [T, hidden] → [T, hidden], part of which may be computed elsewhere until it is waited for."""
        ...


@runtime_checkable
class FusableNetwork(Protocol):
    """A matrix that can be the gate of a whole network in one kernel."""

    def mlp_with(self, up: Linear, down: Linear) -> Linear | None:
        """down(silu(self(x)) × up(x)), or None if it does not fuse with these two."""
        ...


@dataclass(frozen=True)
class NativeNetwork:
    """A layer's second half as kernels, for a call that computes whole layers.

    Attributes:
        always: engine of one expert that all tokens meet: the dense network or the shared experts.
        gate, experts: of the routed ones.
    """

    always: ExpertEngine | None = None
    gate: Gate | None = None
    experts: NativeExperts | None = None


@runtime_checkable
class NativeFeedForward(Protocol):
    """A second half of a layer that may be kernels alone."""

    def native(self) -> NativeNetwork | None:
        """Its kernels, or None if anything else has a part in it."""
        ...


@runtime_checkable
class NativeMLP(Protocol):
    """A whole network in one kernel of the CPU."""

    @property
    def kernel(self) -> ExpertEngine:
        """An engine of one expert, as layer 0."""
        ...


class MLP:
    """down(silu(gate(x)) × up(x)), in one kernel where the three can be."""

    def __init__(self, gate: Linear, up: Linear, down: Linear) -> None:
        fused = gate.mlp_with(up, down) if isinstance(gate, FusableNetwork) else None
        self._network = fused or _Chain(swiglu(gate, up), down)

    def __call__(self, x: Tensor) -> Tensor:
        """x: [T, hidden] → [T, hidden]."""
        return self._network(x)

    def native(self) -> NativeNetwork | None:
        """See `NativeFeedForward`."""
        network = self._network
        return NativeNetwork(always=network.kernel) if isinstance(network, NativeMLP) else None

    def begin(self, x: Tensor, step: Step) -> Pending:
        """All of it at once."""
        del step  # nothing of it is computed elsewhere
        y = self(x)
        return lambda: y


class _Chain:
    """One after the other."""

    def __init__(self, first: Linear, second: Linear) -> None:
        self._first = first
        self._second = second

    def __call__(self, x: Tensor) -> Tensor:
        return self._second(self._first(x))
