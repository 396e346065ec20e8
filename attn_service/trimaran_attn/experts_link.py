"""The routed experts of other processes, for the model: tensors to arrays and back, and waits measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from trimaran_kernels import ThreadPool

from trimaran_attn.metrics import Meter


class ExpertsLink(Protocol):
    """What is used of `ExpertsClient`. It reconnects by itself."""

    def connect(self, on_progress: Callable[[str, float], None] | None = None) -> None:
        """Wait until every shard is ready; raises PeerError or PeerMismatchError."""
        ...

    def submit(self, layer: int, x: Any, ids: NDArray[np.int32], weights: NDArray[np.float32]) -> Any:
        """Start a layer; raises PeerError."""
        ...

    def wait(self, ticket: Any) -> NDArray[np.float32]:
        """[n, hidden]; raises PeerError."""
        ...

    def settle(self) -> None:
        """Wait out the calls that a step left behind when it broke off."""
        ...

    def ready(self) -> bool:
        """Whether every shard serves now."""
        ...

    def stats(self) -> dict[str, dict[str, float]]:
        """Counters by shard."""
        ...

    def expert_tokens(self) -> dict[int, list[int]]:
        """By layer, tokens routed to each expert."""
        ...

    def close(self) -> None:
        """Say goodbye."""
        ...


@dataclass(frozen=True)
class TimedTicket:
    """A link's ticket and when it was submitted, in seconds of time.perf_counter."""

    ticket: Any
    submitted_at: float


class RemoteExperts:
    """Implements `Experts` over a link; all layers share it.

    Args:
        link: connected before the first submit.
        meter: takes `expert_rpc_latency_seconds` (submit to answer) and, of that, what was not hidden behind
            other work, `attention_wait_on_experts_seconds`; a sample of each per layer and step.
        dtype: element type that the link takes.
        pool: threads that sleep while others compute, who may need their cores.
    """

    def __init__(
        self,
        link: ExpertsLink,
        meter: Meter,
        dtype: torch.dtype = torch.float32,
        pool: ThreadPool | None = None,
    ) -> None:
        self._link = link
        self._dtype = dtype
        self._meter = meter
        self._pool = pool

    def submit(self, layer: int, x: Tensor, ids: Tensor, weights: Tensor) -> TimedTicket:
        """See `Experts.submit`; x is of any type, on any device."""
        array = _array(x.to(self._dtype))
        if self._pool is not None:
            self._pool.rest()
        submitted_at = time.perf_counter()
        ticket = self._link.submit(layer, array, ids.cpu().numpy(), weights.cpu().numpy())
        return TimedTicket(ticket, submitted_at)

    def wait(self, ticket: TimedTicket) -> Tensor:
        """See `Experts.wait`."""
        start = time.perf_counter()
        y = self._link.wait(ticket.ticket)
        now = time.perf_counter()
        self._meter.observe("attention_wait_on_experts_seconds", now - start)
        self._meter.observe("expert_rpc_latency_seconds", now - ticket.submitted_at)
        return torch.from_numpy(y)


def _array(x: Tensor) -> NDArray[Any]:
    """[n, hidden] as float32, or as the bits of bfloat16."""
    x = x.contiguous().cpu()
    array: NDArray[Any] = (x.view(torch.uint16) if x.dtype == torch.bfloat16 else x).numpy()
    return array
