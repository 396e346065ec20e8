"""How a call reaches a shard and comes back: one interface, three notifiers.

doorbell  tensors in the arena, a sequence number rings and answers; no message, no Python on the other side
zmq       tensors in the arena, `Submit` and `Done` messages
tcp       tensors as frames of these messages; the shard may be on another host

A transport serves one session with a shard: when the link is lost, it is closed and a new one is made, so
that a peer that wakes up late can only write to memory that nobody reads any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from trimaran.arena import Arena, ArenaDims, arena_directory
from trimaran.config import Notifier
from trimaran.wire import Done, Status, Submit
from trimaran_kernels.hop import HopArena

from trimaran_attn.experts_client.bf16 import from_bf16, to_bf16

Vectors = NDArray[np.float32] | NDArray[np.uint16]
Sums = NDArray[np.float32]
"""float32 [n, hidden], what the shards' answers are added to."""


@dataclass(frozen=True, slots=True)
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
    """One session's calls."""

    @property
    def arena_path(self) -> str | None:
        """What the hello says about the arena."""
        ...

    def submit(self, slot: int, sequence: int, batch: Batch) -> None:
        """Start a call in a free slot."""
        ...

    def wait(self, slot: int, sequence: int, y: Sums, timeout_s: float) -> Reply | None:
        """Its reply, or None after `timeout_s`; if it is OK, the answer has been added to `y`."""
        ...

    def is_done(self, slot: int, sequence: int) -> bool:
        """Whether the call has ended, for slots whose answer nobody wants any more."""
        ...

    def close(self) -> None:
        """Give the memory back."""
        ...


_DONE = Reply(Status.OK)


def make_transport(notifier: Notifier, dims: ArenaDims, run_dir: Path, mail: Mail) -> Transport:
    """A transport of the configured kind.

    Raises:
        PeerError: no room for its arena.
    """
    if notifier == "tcp":
        return FrameTransport(dims, mail)
    arena = Arena(dims, arena_directory(run_dir))
    return DoorbellTransport(arena) if notifier == "doorbell" else MessageTransport(arena, mail)


class ArenaTransport:
    """Tensors in an arena: what the doorbell and the messages share."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        try:
            self._memory = HopArena(str(arena.path))
        except BaseException:
            arena.close()
            raise

    @property
    def arena_path(self) -> str | None:
        """Path of the arena."""
        return str(self._arena.path)

    def close(self) -> None:
        """Remove the arena's file."""
        self._arena.close()


@dataclass(frozen=True, eq=False, slots=True)
class SharedArena:
    """A session's arena: the memory, and how the worker behind it is told of steps."""

    arena: Arena
    memory: HopArena


class DoorbellTransport(ArenaTransport):
    """The shard's native worker watches the arena."""

    def __init__(self, arena: Arena) -> None:
        super().__init__(arena)
        self.shared = SharedArena(arena, self._memory)

    def submit(self, slot: int, sequence: int, batch: Batch) -> None:
        """Write the tensors, ring."""
        self._memory.submit(slot, sequence, batch.layer, batch.x, batch.ids, batch.weights)

    def wait(self, slot: int, sequence: int, y: Sums, timeout_s: float) -> Reply | None:
        """Sleep until the worker answers; other Python threads run meanwhile."""
        status = self._memory.wait_add(slot, sequence, timeout_s, y)
        return _DONE if status == Status.OK else None if status is None else Reply(status)

    def is_done(self, slot: int, sequence: int) -> bool:
        """Whether the worker has answered."""
        return self._memory.wait_done(slot, sequence, 0) is not None

    def close(self) -> None:
        """End the waits of a GPU, remove the file."""
        self._memory.abandon()
        super().close()


class MessageTransport(ArenaTransport):
    """Messages announce what lies in the arena."""

    def __init__(self, arena: Arena, mail: Mail) -> None:
        super().__init__(arena)
        self._mail = mail

    def submit(self, slot: int, sequence: int, batch: Batch) -> None:
        """Write the tensors, send a message."""
        self._memory.put(slot, batch.x, batch.ids, batch.weights)
        self._mail.send(_submit(slot, sequence, batch))

    def wait(self, slot: int, sequence: int, y: Sums, timeout_s: float) -> Reply | None:
        """Wait for the answering message."""
        answer = self._mail.take_done(slot, sequence, timeout_s)
        if answer is None:
            return None
        done, _ = answer
        if done.status == Status.OK:
            self._memory.add(slot, y)
        return Reply(done.status, done.message)

    def is_done(self, slot: int, sequence: int) -> bool:
        """Whether the message is there."""
        return self._mail.take_done(slot, sequence, 0) is not None


class FrameTransport:
    """Messages carry the tensors."""

    arena_path = None

    def __init__(self, dims: ArenaDims, mail: Mail) -> None:
        self._dims = dims
        self._mail = mail

    def submit(self, slot: int, sequence: int, batch: Batch) -> None:
        """Send a message with x, ids and weights. Copies: ZeroMQ sends later, the caller may write sooner."""
        x = to_bf16(batch.x.astype(np.float32, copy=False)) if self._must_round(batch.x) else batch.x
        frames = [memoryview(part.tobytes()) for part in (x, batch.ids, batch.weights)]
        self._mail.send(_submit(slot, sequence, batch), frames)

    def wait(self, slot: int, sequence: int, y: Sums, timeout_s: float) -> Reply | None:
        """Wait for the answering message with y."""
        answer = self._mail.take_done(slot, sequence, timeout_s)
        if answer is None:
            return None
        done, frames = answer
        if done.status != Status.OK:
            return Reply(done.status, done.message)
        answered = b"".join(frames)
        if len(answered) != y.size * self._dims.element.itemsize:
            return Reply(Status.INTERNAL, f"it answered {len(answered)} bytes for {len(y)} tokens")
        if self._dims.dtype == "f32":
            y += np.frombuffer(answered, np.float32).reshape(y.shape)
        else:
            y += from_bf16(np.frombuffer(answered, np.uint16)).reshape(y.shape)
        return _DONE

    def is_done(self, slot: int, sequence: int) -> bool:
        """Whether the message is there."""
        return self._mail.take_done(slot, sequence, 0) is not None

    def _must_round(self, x: Vectors) -> bool:
        return x.dtype == np.float32 and self._dims.dtype == "bf16"

    def close(self) -> None:
        """Nothing to give back."""


def _submit(slot: int, sequence: int, batch: Batch) -> Submit:
    return Submit(slot=slot, sequence=sequence, layer=batch.layer, n_tokens=len(batch))
