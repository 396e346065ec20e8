"""What a session with a shard is made of, for each of the three notifiers.

doorbell  tensors in the arena, a sequence number rings and answers; no message, no Python on the other side
zmq       tensors in the arena, `Submit` and `Done` messages
tcp       tensors as frames of these messages; the shard may be on another host

A transport serves one session: when the link is lost, it is closed and a new one is made, so that a peer
that wakes up late can only write to memory that nobody reads any more. `calls` uses them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from trimaran.arena import Arena, ArenaDims, arena_directory
from trimaran.config import Notifier
from trimaran.wire import Done, Status, Submit
from trimaran_kernels.hop import HopArena, HopLine

from trimaran_attn.experts_client.bf16 import from_bf16, to_bf16

Vectors = NDArray[np.float32] | NDArray[np.uint16]
Sums = NDArray[np.float32]
"""float32 [n, hidden], what the shards' answers are added to."""


@dataclass(slots=True)  # not frozen: one is made for each layer of each step, and that costs 2 µs
class Batch:
    """Tokens of one layer: x [n, hidden] float32 or bf16 bits, ids int32 and weights float32 [n, top_k]."""

    layer: int
    x: Vectors
    ids: NDArray[np.int32]
    weights: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.x)

    def part(self, start: int, stop: int) -> Batch:
        """Tokens [start, stop)."""
        if stop - start == len(self):
            return self
        rows = slice(start, stop)
        return Batch(self.layer, self.x[rows], self.ids[rows], self.weights[rows])


class Reply(NamedTuple):
    """A finished call: a `Status` code, and the peer's words about it."""

    status: int
    message: str = ""


Answer = tuple[Done, tuple[memoryview, ...]]
"""A `Done` message and the frames behind it."""


class Mail(Protocol):
    """What transports by message need of the link."""

    def send(self, message: Submit, frames: Sequence[memoryview] = ()) -> None:
        """Send, or raise PeerError."""
        ...

    def take_done(self, slot: int, sequence: int, timeout_s: float) -> Answer | None:
        """The answer to a submit, or None after `timeout_s`."""
        ...


class Transport(Protocol):
    """One session."""

    @property
    def arena_path(self) -> str | None:
        """What the hello says about the arena."""
        ...

    def close(self) -> None:
        """Give the memory back."""
        ...


_DONE = Reply(Status.OK)


def make_transport(
    notifier: Notifier, dims: ArenaDims, run_dir: Path, mail: Mail, first_slot: int
) -> Transport:
    """A transport of the configured kind, whose calls use the slots from `first_slot` on.

    Raises:
        PeerError: no room for its arena.
    """
    slots = range(first_slot, dims.n_slots)
    if notifier == "tcp":
        return FrameTransport(dims, mail, slots)
    arena = Arena(dims, arena_directory(run_dir))
    try:
        memory = HopArena(str(arena.path))
        if notifier == "doorbell":
            return DoorbellTransport(SharedArena(arena, memory), first_slot)
        return MessageTransport(SharedArena(arena, memory), mail, slots)
    except BaseException:
        arena.close()
        raise


@dataclass(frozen=True, eq=False, slots=True)
class SharedArena:
    """A session's arena: the file, and its memory as native code sees it."""

    arena: Arena
    memory: HopArena

    @property
    def path(self) -> str:
        """Of the file."""
        return str(self.arena.path)


class DoorbellTransport:
    """The shard's native worker watches the arena.

    Attributes:
        shared: the arena. line: its free slots, and the sequences of calls.
    """

    def __init__(self, shared: SharedArena, first_slot: int) -> None:
        self.shared = shared
        self.line = HopLine(shared.memory, first_slot)

    @property
    def arena_path(self) -> str | None:
        """Path of the arena."""
        return self.shared.path

    def close(self) -> None:
        """End the waits of a GPU, remove the file."""
        self.shared.memory.abandon()
        self.shared.arena.close()


class MailTransport(ABC):
    """Messages announce calls and their answers: what transports by message share.

    Args:
        slots: that calls may use; over frames they are mere numbers.
    """

    arena_path: str | None = None

    def __init__(self, mail: Mail, slots: range) -> None:
        self._mail = mail
        self._free = list(slots)
        self._abandoned: list[tuple[int, int]] = []  # slot, sequence of calls that nobody waits for any more

    def free_slots(self) -> int:
        """Calls that may be submitted now."""
        for slot, sequence in list(self._abandoned):
            if self._mail.take_done(slot, sequence, 0) is not None:
                self._abandoned.remove((slot, sequence))
                self._free.append(slot)
        return len(self._free)

    def submit(self, sequence: int, batch: Batch) -> int:
        """Start a call; its slot. There must be a free one."""
        slot = self._free.pop()
        self._post(Submit(slot=slot, sequence=sequence, layer=batch.layer, n_tokens=len(batch)), batch)
        return slot

    def wait(self, slot: int, sequence: int, y: Sums, timeout_s: float) -> Reply | None:
        """Its reply, or None after `timeout_s`; if it is OK, the answer has been added to `y`."""
        answer = self._mail.take_done(slot, sequence, timeout_s)
        if answer is None:
            return None
        done, frames = answer
        return self._add(slot, frames, y) if done.status == Status.OK else Reply(done.status, done.message)

    def release(self, slot: int) -> None:
        """The slot is free again."""
        self._free.append(slot)

    def abandon(self, slot: int, sequence: int) -> None:
        """Nobody will wait for this call: its slot is free once the shard is done with it."""
        self._abandoned.append((slot, sequence))

    def close(self) -> None:  # noqa: B027 - nothing to give back without an arena
        """Give the memory back."""

    @abstractmethod
    def _post(self, submit: Submit, batch: Batch) -> None:
        """Send the message, after the tensors or with them."""

    @abstractmethod
    def _add(self, slot: int, frames: tuple[memoryview, ...], y: Sums) -> Reply:
        """Add the answer to y."""


class MessageTransport(MailTransport):
    """Messages announce what lies in the arena."""

    def __init__(self, shared: SharedArena, mail: Mail, slots: range) -> None:
        super().__init__(mail, slots)
        self._shared = shared
        self.arena_path = shared.path

    def close(self) -> None:
        """Remove the arena's file."""
        self._shared.arena.close()

    def _post(self, submit: Submit, batch: Batch) -> None:
        self._shared.memory.put(submit.slot, batch.x, batch.ids, batch.weights)
        self._mail.send(submit)

    def _add(self, slot: int, frames: tuple[memoryview, ...], y: Sums) -> Reply:
        del frames
        self._shared.memory.add(slot, y)
        return _DONE


class FrameTransport(MailTransport):
    """Messages carry the tensors."""

    def __init__(self, dims: ArenaDims, mail: Mail, slots: range) -> None:
        super().__init__(mail, slots)
        self._dims = dims

    def _post(self, submit: Submit, batch: Batch) -> None:
        """Copies: ZeroMQ sends later, the caller may write sooner."""
        must_round = batch.x.dtype == np.float32 and self._dims.dtype == "bf16"
        x = to_bf16(batch.x.astype(np.float32, copy=False)) if must_round else batch.x
        self._mail.send(submit, [memoryview(part.tobytes()) for part in (x, batch.ids, batch.weights)])

    def _add(self, slot: int, frames: tuple[memoryview, ...], y: Sums) -> Reply:
        del slot
        answered = b"".join(frames)
        if len(answered) != y.size * self._dims.element.itemsize:
            return Reply(Status.INTERNAL, f"it answered {len(answered)} bytes for {len(y)} tokens")
        if self._dims.dtype == "f32":
            y += np.frombuffer(answered, np.float32).reshape(y.shape)
        else:
            y += from_bf16(np.frombuffer(answered, np.uint16)).reshape(y.shape)
        return _DONE
