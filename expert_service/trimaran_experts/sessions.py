"""One attention service's session: how its calls reach the engine, by the notifier that it asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from trimaran.errors import KernelError
from trimaran.wire import Hello, Status, Submit
from trimaran_kernels.hop import ArenaWorker, HopArena

from trimaran_experts.engine import ShardEngine

_INT32_MAX = 2**31 - 1


@dataclass(frozen=True)
class Answer:
    """What a call came to: a `Status` code and, over tcp, the frames that follow the `Done`."""

    status: int
    frames: tuple[memoryview, ...] = ()


class Session(Protocol):
    """Calls of one client. `compute` runs in the call runner's thread, the rest in the control loop."""

    def compute(self, submit: Submit, frames: Sequence[memoryview]) -> Answer:
        """Serve a `Submit` message."""
        ...

    def detach(self) -> None:
        """Take no more calls. Returns at once; a call may still be running."""
        ...

    @property
    def finished(self) -> bool:
        """After `detach`: whether nothing of this session runs any more."""
        ...

    @property
    def lost(self) -> bool:
        """Whether the client cut its arena short: no call can be answered any more."""
        ...


def open_session(hello: Hello, engine: ShardEngine) -> Session:
    """The session that `hello` asks for.

    Raises:
        KernelError: its arena is missing, malformed or not of the dimensions that it names.
    """
    if hello.notifier == "tcp":
        return FrameSession(hello, engine)
    arena = _open_arena(hello)
    return DoorbellSession(arena, engine) if hello.notifier == "doorbell" else ArenaSession(arena, engine)


class DoorbellSession:
    """A native thread serves the arena; no call passes through Python."""

    def __init__(self, arena: HopArena, engine: ShardEngine) -> None:
        self._arena = arena
        self._worker = ArenaWorker(arena, engine.gate, engine.cpus[0])

    def compute(self, submit: Submit, frames: Sequence[memoryview]) -> Answer:
        """Refused: calls come by the doorbell."""
        del submit, frames
        return Answer(Status.BAD_SLOT)

    def detach(self) -> None:
        """Stop the native thread after the call in flight."""
        self._worker.request_stop()

    @property
    def finished(self) -> bool:
        """Whether the native thread has ended."""
        return self._worker.finished

    @property
    def lost(self) -> bool:
        """Whether the arena's file was cut short; the native thread has then ended by itself."""
        return self._arena.lost


class ArenaSession:
    """Calls are announced by messages; their tensors are in the arena."""

    finished = True

    def __init__(self, arena: HopArena, engine: ShardEngine) -> None:
        self._arena = arena
        self._engine = engine

    def compute(self, submit: Submit, frames: Sequence[memoryview]) -> Answer:
        """Run one slot."""
        del frames
        if not 0 <= submit.slot <= _INT32_MAX:
            return Answer(Status.BAD_SLOT)
        if not 0 <= submit.n_tokens <= _INT32_MAX:
            return Answer(Status.BAD_TOKEN_COUNT)
        if not 0 <= submit.layer <= _INT32_MAX:
            return Answer(Status.BAD_LAYER)
        return Answer(self._engine.gate.run_slot(self._arena, submit.slot, submit.layer, submit.n_tokens))

    def detach(self) -> None:
        """Nothing to stop: the arena is unmapped with its last call."""

    @property
    def lost(self) -> bool:
        """Whether the arena's file was cut short."""
        return self._arena.lost


class FrameSession:
    """Calls and their tensors come as message frames: x, ids, weights; y goes back as one."""

    finished = True
    lost = False

    def __init__(self, hello: Hello, engine: ShardEngine) -> None:
        self._hidden_size = hello.hidden_size
        self._top_k = hello.top_k
        self._element = np.dtype(np.float32 if hello.dtype == "f32" else np.uint16)
        self._engine = engine

    def compute(self, submit: Submit, frames: Sequence[memoryview]) -> Answer:
        """Run the frames' tensors."""
        if not 0 <= submit.layer <= _INT32_MAX:
            return Answer(Status.BAD_LAYER)
        tensors = self._tensors(submit.n_tokens, frames)
        if tensors is None:
            return Answer(Status.BAD_TOKEN_COUNT)
        x, ids, weights = tensors
        y = np.empty_like(x)
        status = self._engine.gate.run(submit.layer, x, ids, weights, y)
        return Answer(status, (y.data.cast("B"),) if status == Status.OK and y.size else ())

    def detach(self) -> None:
        """Nothing to stop."""

    def _tensors(
        self, n_tokens: int, frames: Sequence[memoryview]
    ) -> tuple[NDArray[np.generic], NDArray[np.generic], NDArray[np.generic]] | None:
        """x, ids and weights, or None unless the frames have exactly the size of `n_tokens` tokens."""
        if n_tokens < 0 or len(frames) != 3:
            return None
        rows = (
            (self._element, self._hidden_size),
            (np.dtype(np.int32), self._top_k),
            (np.dtype(np.float32), self._top_k),
        )
        expected = [n_tokens * width * element.itemsize for element, width in rows]
        if [frame.nbytes for frame in frames] != expected:
            return None
        # A copy: ZeroMQ's buffers may lie on any address, and kernels want aligned ones.
        x, ids, weights = (
            np.frombuffer(frame, element).reshape(n_tokens, width).copy()
            for frame, (element, width) in zip(frames, rows, strict=True)
        )
        return x, ids, weights


def _open_arena(hello: Hello) -> HopArena:
    if hello.arena is None:
        raise KernelError(f"hello: the {hello.notifier} notifier needs an arena")
    arena = HopArena(hello.arena)
    hidden_size, top_k, _, _, dtype = arena.dims
    if (hidden_size, top_k, dtype) != (hello.hidden_size, hello.top_k, hello.dtype):
        raise KernelError(f"arena {hello.arena}: its dimensions are not those of the hello")
    return arena
