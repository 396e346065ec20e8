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
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from trimaran.arena import Arena, ArenaDims, arena_directory
from trimaran.config import Notifier
from trimaran.wire import Done, Status, Submit
from trimaran_kernels.hop import HopArena

Vectors = NDArray[np.float32] | NDArray[np.uint16]


@dataclass(frozen=True)
class Batch:
    """Tokens of one layer: x [n, hidden] float32 or bf16 bits, ids int32 and weights float32 [n, top_k]."""

    layer: int
    x: Vectors
    ids: NDArray[np.int32]
    weights: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.x)

    @property
    def nbytes(self) -> int:
        """Size of the tensors."""
        return self.x.nbytes + self.ids.nbytes + self.weights.nbytes

    def part(self, start: int, stop: int) -> Batch:
        """Tokens [start, stop)."""
        rows = slice(start, stop)
        return Batch(self.layer, self.x[rows], self.ids[rows], self.weights[rows])


@dataclass(frozen=True)
class Reply:
    """A finished call: a `Status` code, the peer's words about it, and y [n, hidden] if it is OK."""

    status: int
    message: str = ""
    y: Vectors | None = None


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

    def wait(self, slot: int, sequence: int, n_tokens: int, timeout_s: float) -> Reply | None:
        """Its reply, or None after `timeout_s`. The reply's y is good until the slot is used again."""
        ...

    def close(self) -> None:
        """Give the memory back."""
        ...


def make_transport(notifier: Notifier, dims: ArenaDims, run_dir: Path, mail: Mail) -> Transport:
    """A transport of the configured kind.

    Raises:
        PeerError: no room for its arena.
    """
    if notifier == "tcp":
        return FrameTransport(dims, mail)
    arena = Arena(dims, arena_directory(run_dir))
    return DoorbellTransport(arena) if notifier == "doorbell" else ArenaTransport(arena, mail)


class DoorbellTransport:
    """The shard's native worker watches the arena."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        try:
            self._bell = HopArena(str(arena.path))
        except BaseException:
            arena.close()
            raise

    @property
    def arena_path(self) -> str | None:
        """Path of the arena."""
        return str(self._arena.path)

    def submit(self, slot: int, sequence: int, batch: Batch) -> None:
        """Write the tensors, ring."""
        _write(self._arena, slot, batch)
        self._bell.ring(slot, sequence, batch.layer, len(batch))

    def wait(self, slot: int, sequence: int, n_tokens: int, timeout_s: float) -> Reply | None:
        """Sleep until the worker answers; other Python threads run meanwhile."""
        status = self._bell.wait_done(slot, sequence, timeout_s)
        return None if status is None else _read(self._arena, slot, status, "", n_tokens)

    def close(self) -> None:
        """Remove the arena's file."""
        self._arena.close()


class ArenaTransport:
    """Messages announce what lies in the arena."""

    def __init__(self, arena: Arena, mail: Mail) -> None:
        self._arena = arena
        self._mail = mail

    @property
    def arena_path(self) -> str | None:
        """Path of the arena."""
        return str(self._arena.path)

    def submit(self, slot: int, sequence: int, batch: Batch) -> None:
        """Write the tensors, send a message."""
        _write(self._arena, slot, batch)
        self._mail.send(_submit(slot, sequence, batch))

    def wait(self, slot: int, sequence: int, n_tokens: int, timeout_s: float) -> Reply | None:
        """Wait for the answering message."""
        answer = self._mail.take_done(slot, sequence, timeout_s)
        if answer is None:
            return None
        done, _ = answer
        return _read(self._arena, slot, done.status, done.message, n_tokens)

    def close(self) -> None:
        """Remove the arena's file."""
        self._arena.close()


class FrameTransport:
    """Messages carry the tensors."""

    arena_path = None

    def __init__(self, dims: ArenaDims, mail: Mail) -> None:
        self._dims = dims
        self._mail = mail

    def submit(self, slot: int, sequence: int, batch: Batch) -> None:
        """Send a message with x, ids and weights. Copies: ZeroMQ sends later, the caller may write sooner."""
        frames = [memoryview(part.tobytes()) for part in (batch.x, batch.ids, batch.weights)]
        self._mail.send(_submit(slot, sequence, batch), frames)

    def wait(self, slot: int, sequence: int, n_tokens: int, timeout_s: float) -> Reply | None:
        """Wait for the answering message with y."""
        answer = self._mail.take_done(slot, sequence, timeout_s)
        if answer is None:
            return None
        done, frames = answer
        if done.status != Status.OK:
            return Reply(done.status, done.message)
        y: Vectors = np.empty((n_tokens, self._dims.hidden_size), self._dims.element)
        answered = sum(frame.nbytes for frame in frames)
        if answered != y.nbytes:
            return Reply(Status.INTERNAL, f"it answered {answered} bytes for {n_tokens} tokens")
        y.reshape(-1).view(np.uint8)[:] = np.frombuffer(b"".join(frames), np.uint8)
        return Reply(Status.OK, y=y)

    def close(self) -> None:
        """Nothing to give back."""


def _submit(slot: int, sequence: int, batch: Batch) -> Submit:
    return Submit(slot=slot, sequence=sequence, layer=batch.layer, n_tokens=len(batch))


def _write(arena: Arena, slot: int, batch: Batch) -> None:
    views, n = arena.slot(slot), len(batch)
    views.x[:n] = batch.x
    views.ids[:n] = batch.ids
    views.weights[:n] = batch.weights


def _read(arena: Arena, slot: int, status: int, message: str, n_tokens: int) -> Reply:
    if status != Status.OK:
        return Reply(status, message)
    return Reply(status, y=arena.slot(slot).y[:n_tokens])
