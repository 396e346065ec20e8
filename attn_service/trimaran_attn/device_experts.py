"""The routed experts for GPUs' tensors: each GPU writes requests and waits for answers by itself.

The arenas are registered as pinned memory. A step's hops are launches in the stream's order like any other;
the host marks the step in flight, so that the expert services poll, and reads afterwards how the hops went.
Needs Triton, so it is imported only where there is a GPU.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
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
    """The arenas that the devices see now.

    Attributes:
        memories: of the arenas, registered.
        places: the slots that are the devices'.
    """

    arenas: tuple[SharedArena, ...]
    memories: tuple[NDArray[np.uint8], ...]
    places: tuple[SlotPlace, ...]


class Side:
    """One device's end of the hops: what its kernels keep, and the slots that are its own.

    Args:
        device: whose tensors they are.
        slots: of every arena.
    """

    def __init__(self, device: torch.device, slots: range) -> None:
        self.device = device
        self.state: HopState | None = None
        self._slots = slots
        self._free: deque[int] = deque()
        self._counts: dict[int, Tensor] = {}  # no more than a slot has tokens
        self._totals = [0, 0, 0]

    def attach(self, addresses: list[int]) -> None:
        """The arenas of now. In place: what was recorded before a shard was lost reads them from here."""
        if self.state is None:
            self.state = HopState.make(len(addresses), self._slots.stop, self.device)
        self.state.arenas.copy_(torch.tensor(addresses, dtype=torch.int64))

    def begin(self) -> None:
        """A step: all slots are free."""
        self._free = deque(self._slots)

    @contextmanager
    def slots_kept(self) -> Iterator[None]:
        """What fails within keeps no slot: a recording that the driver breaks off has asked nobody."""
        free = self._free.copy()
        try:
            yield
        except BaseException:
            self._free = free
            raise

    def take_slot(self) -> int:
        """Raises OverloadedError if there is none."""
        if not self._free:
            raise OverloadedError(f"all {len(self._slots)} slots of the device's experts are in use")
        return self._free.popleft()

    def free_slot(self, slot: int) -> None:
        """Its answer was launched to be read."""
        self._free.append(slot)

    def count(self, n: int) -> Tensor:
        """int32 [1] on the device."""
        if n not in self._counts:
            self._counts[n] = torch.full((1,), n, dtype=torch.int32, device=self.device)
        return self._counts[n]

    def take_report(self) -> tuple[list[int], list[int]]:
        """Of the step that ends, when the device is done; a failure is not left to the next one.

        Returns:
            Failure, layer, shard, status; and nanoseconds waited, waits and rows of this step.
        """
        assert self.state is not None
        report: list[int] = self.state.report.tolist()
        if report[0]:
            self.state.report[:4] = 0
        added = [now - before for now, before in zip(report[4:], self._totals, strict=True)]
        self._totals = report[4:]
        return report[:4], added


@dataclass(frozen=True)
class DeviceTicket:
    """A layer that was asked for: by whom, where, and the shape and type of its answer."""

    layer: int
    side: Side
    slot: int
    like: Tensor


class DeviceExperts:
    """Implements `Experts` for tensors of some devices; submits belong into a `step`.

    Args:
        link: to the shards, connected before the first step.
        fallback: computes where the arenas cannot be registered, and for tensors elsewhere.
        meter: takes `attention_wait_on_experts_seconds`: the mean wait of a step, once for each of its waits.
        pinning: makes arenas visible.
        devices: whose tensors these are.
        n_slots: layers that may be in flight at once on each of them: the first slots of every arena are the
            first device's, the next ones the second's.
        timeout_s: of an answer.
    """

    def __init__(
        self,
        link: ArenaLink,
        fallback: Experts,
        meter: Meter,
        pinning: Pinning,
        *,
        devices: Sequence[torch.device],
        n_slots: int,
        timeout_s: float,
    ) -> None:
        self._link = link
        self._fallback = fallback
        self._meter = meter
        self._pinning = pinning
        self._timeout_s = timeout_s
        self._attached: Attached | None = None
        self._sides = {
            device: Side(device, range(number * n_slots, (number + 1) * n_slots))
            for number, device in enumerate(devices)
        }
        self._n_slots = n_slots * len(self._sides)
        self._is_refused = False
        self._live: dict[torch.device, Tensor] = {}

    @contextmanager
    def step(self) -> Iterator[None]:
        """All hops of one forward pass; the body ends when the devices are done with them.

        Raises:
            PeerError: a shard is away, went away or did not answer. KernelError: a shard refused a layer.
        """
        attached = self._attach()
        if attached is None:
            yield
            return
        for side in self._sides.values():
            side.begin()
        with _in_flight(attached.arenas):
            try:
                yield
            finally:
                # Waits for the devices: the experts sleep once no step is in flight.
                reports = [side.take_report() for side in self._sides.values()]
        self._tell(reports)

    @property
    def is_attached(self) -> bool:
        """Whether the devices themselves ring and wait, so that a step can be captured."""
        return self._attached is not None

    @contextmanager
    def padded(self, *live: Tensor) -> Iterator[None]:
        """Within, only the first `live` rows of every batch are real; int32 [1], one a device."""
        self._live = {count.device: count for count in live}
        try:
            with ExitStack() as kept:
                for side in self._sides.values():
                    kept.enter_context(side.slots_kept())
                yield
        finally:
            self._live = {}

    def submit(self, layer: int, x: Tensor, ids: Tensor, weights: Tensor) -> Any:
        """See `Experts.submit`.

        Raises:
            ValueError: other shapes than a slot has, or more tokens.
            OverloadedError: as many layers are in flight as there are slots.
        """
        side = self._sides.get(x.device)
        if self._attached is None or side is None or side.state is None or not len(x):
            return self._fallback.submit(layer, x, ids, weights)
        self._check_shapes(x, ids, weights)
        slot = side.take_slot()
        place = self._attached.places[slot]
        with entered(side.device):
            submit(side.state, place, layer, x, ids, weights, self._live_rows(side, len(x)))
        return DeviceTicket(layer, side, slot, x)

    def wait(self, ticket: Any) -> Tensor:
        """See `Experts.wait`; the answer has x's type. It is 0 after a failure, which ends the step."""
        if not isinstance(ticket, DeviceTicket):
            return self._fallback.wait(ticket)
        side = ticket.side
        assert self._attached is not None
        assert side.state is not None
        out = torch.empty_like(ticket.like, memory_format=torch.contiguous_format)
        place = self._attached.places[ticket.slot]
        with entered(side.device):  # deferred experts are waited for by a layer that may be on another GPU
            live = self._live_rows(side, len(out))
            wait(side.state, place, ticket.layer, out, live, self._timeout_s)
        side.free_slot(ticket.slot)
        return out

    def close(self) -> None:
        """Give the arenas back. May be called twice."""
        attached, self._attached = self._attached, None
        if attached is not None:
            self._unregister(attached.memories)

    def _unregister(self, memories: Sequence[NDArray[np.uint8]]) -> None:
        """Each of them, whatever becomes of the others: what is kept of one does not matter to the next."""
        for memory in memories:
            try:
                self._pinning.unregister(memory)
            except PinningRefusedError as error:
                _log.warning("an arena stays registered until the process ends", reason=str(error))

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

    def _live_rows(self, side: Side, n: int) -> Tensor:
        live = self._live.get(side.device)
        return side.count(n) if live is None else live

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
        try:
            for shared in arenas:
                self._pinning.register(shared.arena.memory)
                memories.append(shared.arena.memory)
            for side in self._sides.values():
                side.attach([self._pinning.address(memory, side.device) for memory in memories])
        except BaseException:
            self._unregister(memories)
            raise
        places = tuple(_place(arenas[0], slot) for slot in range(self._n_slots))
        self._attached = Attached(arenas, tuple(memories), places)
        _log.info("arenas registered", devices=" ".join(map(str, self._sides)), shards=len(arenas))

    def _tell(self, reports: Sequence[tuple[list[int], list[int]]]) -> None:
        waited_ns, n_waits, n_rows = (
            sum(counts) for counts in zip(*(new for _, new in reports), strict=True)
        )
        for _ in range(n_waits):
            self._meter.observe("attention_wait_on_experts_seconds", waited_ns / n_waits / 1e9)
        self._link.count_tokens(n_rows)
        for (failure, layer, shard, status), _ in reports:
            if failure:  # what failed on a later device followed from it, or will show again
                error = self._failure(HopFailure(failure), shard, layer, status)
                if isinstance(error, PeerError):
                    self.close()  # a fresh arena may need the room that a lost one takes
                raise error

    def _failure(self, failure: HopFailure, shard: int, layer: int, status: int) -> TrimaranError:
        if failure is HopFailure.TIMEOUT:
            return self._link.timed_out(shard)
        if failure is HopFailure.ABANDONED:
            return self._link.went_away(shard)
        return self._link.refused(shard, layer, status)


@contextmanager
def _in_flight(arenas: Sequence[SharedArena]) -> Iterator[None]:
    """Within, the shards poll; those that were told so are told of the end, whatever fails."""
    with ExitStack() as begun:
        for shared in arenas:
            shared.memory.begin_step()
            begun.callback(shared.memory.end_step)
        yield


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
