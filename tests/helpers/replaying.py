"""Recorded steps without a GPU: what a CUDA graph does, by calling the function again."""

from __future__ import annotations

from collections.abc import Callable

import torch
from capture_guard import CaptureGuard
from torch import Tensor
from torch.nn.functional import silu
from trimaran_attn.hop_steps import PlainSteps
from trimaran_attn.registry import Site


class CallingRecorder:
    """Implements `Recorder`: a replay calls the body again, which must do nothing that a graph could not.

    Attributes:
        recorded, replayed: how often.
        refusal: raised instead of recording.
        refused: which recordings raise it, counted from 0; all of them unless it is said.
    """

    def __init__(self, refusal: RuntimeError | None = None) -> None:
        self.recorded = self.replayed = 0
        self.refusal = refusal
        self.refused: set[int] | None = None
        self._asked = 0

    def record(self, body: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
        """Run it once under guard: a capture does not run, but its first replay does."""
        del device
        number, self._asked = self._asked, self._asked + 1
        if self.refusal is not None and (self.refused is None or number in self.refused):
            raise self.refusal
        self.recorded += 1
        with CaptureGuard():
            result = body().clone()

        def replay() -> Tensor:
            self.replayed += 1
            return result.copy_(body())

        return replay


class AttachedSteps(PlainSteps):
    """Experts of this process, whose hops are launches like any other."""

    is_attached = True


class DenseExperts:
    """All experts of a layer for every token, weighted: as slow as can be, but in tensors alone."""

    def __init__(self, gate: Tensor, up: Tensor, down: Tensor) -> None:
        self._gate = gate
        self._up = up
        self._down = down

    def submit(self, layer: int, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """The result is the ticket."""
        del layer
        asked, shares = ids.long().clamp(min=0), weights.masked_fill(ids < 0, 0.0)
        share = torch.zeros(len(x), len(self._gate), device=x.device).scatter_add(1, asked, shares)
        hidden = silu(torch.einsum("th,eih->tei", x, self._gate)) * torch.einsum("th,eih->tei", x, self._up)
        return torch.einsum("tei,ehi,te->th", hidden, self._down, share)

    def wait(self, ticket: Tensor) -> Tensor:
        """The result."""
        return ticket


def build_dense_experts(site: Site) -> DenseExperts:
    """All experts of a layer, expanded."""
    moe, hidden = site.spec.moe, site.spec.hidden_size
    wide, narrow = (
        (moe.n_experts, moe.intermediate_size, hidden),
        (moe.n_experts, hidden, moe.intermediate_size),
    )
    dense, device = site.weights.dense, site.device
    return DenseExperts(
        dense(f"{site.path}.gate_proj", wide).to(device),
        dense(f"{site.path}.up_proj", wide).to(device),
        dense(f"{site.path}.down_proj", narrow).to(device),
    )
