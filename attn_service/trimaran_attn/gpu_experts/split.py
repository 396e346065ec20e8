"""Routed experts of two places, as one."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from trimaran.errors import TrimaranError

from trimaran_attn.experts import SKIPPED, Experts
from trimaran_attn.gpu_experts.resident import ResidentLayer


@dataclass(frozen=True)
class SplitTicket:
    """The other's ticket, and the residents' sum: float32 [T, hidden], which the device may not have done."""

    rest: Any
    ours: Tensor


class SplitExperts:
    """Implements `Experts` for one layer: its residents are computed here, the others by `inner` meanwhile.

    Args:
        inner: is asked with the residents' places skipped.
        resident: the layer's residents.
    """

    def __init__(self, inner: Experts, resident: ResidentLayer) -> None:
        self._inner = inner
        self._resident = resident

    def submit(self, layer: int, x: Tensor, ids: Tensor, weights: Tensor) -> SplitTicket:
        """See `Experts.submit`."""
        assert layer == self._resident.layer
        here = self._resident.here(ids)
        rest = self._inner.submit(layer, x, torch.where(here, SKIPPED, ids), weights)
        try:
            return SplitTicket(rest, self._resident.compute(x, ids, weights, here))
        except BaseException:
            with suppress(TrimaranError):  # its slot would be lost to later calls
                self._inner.wait(rest)
            raise

    def wait(self, ticket: SplitTicket) -> Tensor:
        """See `Experts.wait`: the others' sum, then the residents' added to it, float32."""
        rest = self._inner.wait(ticket.rest)
        return rest.to(ticket.ours.device, torch.float32) + ticket.ours
