"""The routed experts for a GPU's tensors: the GPU writes requests and waits for answers by itself.

The arenas are registered as pinned memory. A step's hops are launches in the stream's order like any other;
the host marks the step in flight, so that the expert services poll, and reads afterwards how the hops went.
Needs Triton, so it is imported only where there is a GPU.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from trimaran.errors import OverloadedError, PeerError, TrimaranError
from trimaran.telemetry import Log
from trimaran_kernels.gpu.hop import HopFailure, HopState, SlotPlace, submit, wait

from trimaran_attn.experts import Experts
from trimaran_attn.experts_client.transports import SharedArena
from trimaran_attn.metrics import Meter
from trimaran_attn.pinned import Pinning, PinningRefusedError
from trimaran_attn.placement import entered

_log = Log(__name__)


class ArenaLink(Protocol):
    """What is used of `ExpertsClient`."""

    def shared_arenas(self) -> tuple[SharedArena, ...]:
        """Every shard's; other objects after a loss; raises PeerError if one is away."""
        ...

    def count_tokens(self, n_tokens: int) -> None:
        """So many tokens crossed to every shard and back."""
        ...

    def timed_out(self, shard: int) -> PeerError:
        """A shard did not answer; the error to raise."""
        ...

    def went_away(self, shard: int) -> PeerError:
        """A shard was lost; the error to raise."""
        ...

    def refused(self, shard: int, layer: int, status: int) -> TrimaranError:
        """A shard answered with a status; the error to raise."""
        ...


@dataclass(frozen=True)
class Attached:
    """The arenas that the device sees now.

    Attributes:
        memories: of the arenas, registered.
        places: the slots that are the device's.
    """

    arenas: tuple[SharedArena, ...]
    memories: tuple[NDArray[np.uint8], ...]
    places: tuple[SlotPlace, ...]


@dataclass(frozen=True)
class DeviceTicket:
    """A layer that was asked for: where, and the shape and type of its answer."""

    layer: int
    slot: int
    like: Tensor


class DeviceExperts:
    """Implements `Experts` for tensors of one device; submits belong into a `step`.

    Args:
        link: to the shards, connected before the first step.
        fallback: computes where the arenas cannot be registered, and for tensors elsewhere.
        meter: takes `attention_wait_on_experts_seconds`: the mean wait of a step, once for each of its waits.
        pinning: makes arenas visible.
        device: whose tensors these are.
        n_slots: the first slots of every arena are the device's: layers that may be in flight at once.
        timeout_s: of an answer.
    """

    def __init__(
        self,
        link: ArenaLink,
        fallback: Experts,
        meter: Meter,
        pinning: Pinning,
        *,
        device: torch.device,
        n_slots: int,
        timeout_s: float,
    ) -> None:
        self._link = link
        self._fallback = fallback
        self._meter = meter
        self._pinning = pinning
        self._device = device
        self._n_slots = n_slots
        self._timeout_s = timeout_s
        self._attached: Attached | None = None
        self._state: HopState | None = None
        self._is_refused = False
        self._free: deque[int] = deque()
        self._live: Tensor | None = None
        self._counts: dict[int, Tensor] = {}  # no more than a slot has tokens
        self._totals = [0, 0, 0]

    @contextmanager
    def step(self) -> Iterator[None]:
        """All hops of one forward pass; the body ends when the device is done with them.

        Raises:
            PeerError: a shard is away, went away or did not answer. KernelError: a shard refused a layer.
        """
        attached = self._attach()
        if attached is None:
            yield
            return
        self._free = deque(range(self._n_slots))
        for shared in attached.arenas:
            shared.memory.begin_step()
        try:
            yield
        finally:
            try:
                report = (
                    self._take_report()
                )  # waits for the device: the experts sleep once no step is in flight
            finally:
                for shared in attached.arenas:
                    shared.memory.end_step()
        self._tell(report)

    @property
    def is_attached(self) -> bool:
        """Whether the device itself rings and waits, so that a step can be captured."""
        return self._attached is not None

    @contextmanager
    def padded(self, live: Tensor) -> Iterator[None]:
        """Within, only the first `live` (int32 [1], on the device) rows of every batch are real."""
        self._live = live
        try:
            yield
        finally:
            self._live = None

    def submit(self, layer: int, x: Tensor, ids: Tensor, weights: Tensor) -> Any:
        """See `Experts.submit`.

        Raises:
            ValueError: other shapes than a slot has, or more tokens.
            OverloadedError: as many layers are in flight as there are slots.
        """
        if self._attached is None or self._state is None or x.device != self._device or not len(x):
            return self._fallback.submit(layer, x, ids, weights)
        self._check_shapes(x, ids, weights)
        if not self._free:
            raise OverloadedError(f"all {self._n_slots} slots of the device's experts are in use")
        slot = self._free.popleft()
        place = self._attached.places[slot]
        submit(self._state, place, layer, x, ids, weights, self._live_rows(len(x)))
        return DeviceTicket(layer, slot, x)

    def wait(self, ticket: Any) -> Tensor:
        """See `Experts.wait`; the answer has x's type. It is 0 after a failure, which ends the step."""
        if not isinstance(ticket, DeviceTicket):
            return self._fallback.wait(ticket)
        assert self._attached is not None
        assert self._state is not None
        out = torch.empty_like(ticket.like, memory_format=torch.contiguous_format)
        live = self._live_rows(len(out))
        place = self._attached.places[ticket.slot]
        with entered(self._device):  # deferred experts are waited for by a layer that may be on another GPU
            wait(self._state, place, ticket.layer, out, live, self._timeout_s)
        self._free.append(ticket.slot)
        return out

    def close(self) -> None:
        """Give the arenas back. May be called twice."""
        if self._attached is not None:
            for memory in self._attached.memories:
                self._pinning.unregister(memory)
            self._attached = None

    def _check_shapes(self, x: Tensor, ids: Tensor, weights: Tensor) -> None:
        """A kernel would write beyond the slot."""
        assert self._attached is not None
        dims, n = self._attached.arenas[0].arena.dims, len(x)
        if n > dims.max_tokens:
            raise ValueError(f"{n} tokens at once, a slot of the experts' arena holds {dims.max_tokens}")
        routes = (n, dims.top_k)
        if x.shape != (n, dims.hidden_size) or ids.shape != routes or weights.shape != routes:
            shapes = ", ".join(str(tuple(part.shape)) for part in (x, ids, weights))
            raise ValueError(f"shapes {shapes} are not those of {n} tokens for the experts' arena")

    def _live_rows(self, n: int) -> Tensor:
        if self._live is not None:
            return self._live
        if n not in self._counts:
            self._counts[n] = torch.full((1,), n, dtype=torch.int32, device=self._device)
        return self._counts[n]

    def _attach(self) -> Attached | None:
        """The arenas of now, registered; None if the driver refuses."""
        if self._is_refused:
            return None
        arenas = self._link.shared_arenas()
        if self._attached is None or self._attached.arenas != arenas:
            self.close()
            try:
                self._register(arenas)
            except PinningRefusedError as error:
                self._is_refused = True
                _log.warning("the CPU carries tokens to the experts", reason=str(error))
        return self._attached

    def _register(self, arenas: tuple[SharedArena, ...]) -> None:
        memories: list[NDArray[np.uint8]] = []
        addresses = []
        try:
            for shared in arenas:
                memory = shared.arena.memory
                addresses.append(self._pinning.register(memory))
                memories.append(memory)
        except BaseException:
            for memory in memories:
                self._pinning.unregister(memory)
            raise
        if self._state is None:
            self._state = HopState.make(len(arenas), self._n_slots, self._device)
        # In place: graphs that were captured before a shard was lost read the addresses from here.
        self._state.arenas.copy_(torch.tensor(addresses, dtype=torch.int64))
        places = tuple(_place(arenas[0], slot) for slot in range(self._n_slots))
        self._attached = Attached(arenas, tuple(memories), places)
        _log.info("arenas registered", device=str(self._device), shards=len(arenas))

    def _take_report(self) -> list[int]:
        """The report of the step that ends; a failure is not left to the next one."""
        assert self._state is not None
        report: list[int] = self._state.report.tolist()
        if report[0]:
            self._state.report[:4] = 0
        return report

    def _tell(self, report: list[int]) -> None:
        failure, layer, shard, status, *totals = report
        waited_ns, n_waits, n_rows = (now - before for now, before in zip(totals, self._totals, strict=True))
        self._totals = totals
        for _ in range(n_waits):
            self._meter.observe("attention_wait_on_experts_seconds", waited_ns / n_waits / 1e9)
        self._link.count_tokens(n_rows)
        if failure:
            raise self._failure(HopFailure(failure), shard, layer, status)

    def _failure(self, failure: HopFailure, shard: int, layer: int, status: int) -> TrimaranError:
        if failure is HopFailure.TIMEOUT:
            return self._link.timed_out(shard)
        if failure is HopFailure.ABANDONED:
            return self._link.went_away(shard)
        return self._link.refused(shard, layer, status)


def _place(shared: SharedArena, slot: int) -> SlotPlace:
    layout = shared.arena.layout
    return SlotPlace(
        slot,
        shared.arena.slot_start(slot),
        layout.x,
        layout.ids,
        layout.weights,
        layout.y,
        shared.arena.dims.dtype == "bf16",
    )
