"""An arena and what a client or a GPU writes to it, for tests of the native hop."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable

import numpy as np
from trimaran.arena import Arena, ArenaDims
from trimaran.wire import Status
from trimaran_kernels import ExpertEngine

HIDDEN, INTERMEDIATE, EXPERTS, TOP_K, LAYER = 32, 16, 8, 2, 3
DIMS = ArenaDims(HIDDEN, TOP_K, max_tokens=6, n_slots=3, dtype="f32")


def fill(arena: Arena, slot: int, seed: int = 0) -> None:
    random = np.random.default_rng(seed)
    views = arena.slot(slot)
    x = random.standard_normal(views.x.shape).astype(np.float32)
    views.x[:] = x if arena.dims.dtype == "f32" else (x.view(np.uint32) >> 16).astype(np.uint16)
    views.ids[:] = random.integers(0, EXPERTS, views.ids.shape)
    views.weights[:] = random.random(views.weights.shape)
    views.y[:] = 0


def expected(engine: ExpertEngine, arena: Arena, slot: int, n: int) -> np.ndarray:
    views = arena.slot(slot)
    rows = []
    for token in range(n):
        y = np.empty((1, HIDDEN), views.x.dtype)
        row = slice(token, token + 1)
        x, ids, weights = (part[row].copy() for part in (views.x, views.ids, views.weights))
        assert engine.forward(LAYER, x, ids, weights, y) == Status.OK
        rows.append(y)
    return np.concatenate(rows) if rows else np.empty((0, HIDDEN), views.x.dtype)


class Stepper:
    """Writes requests as a GPU does: the sequence alone, neither bell nor system call."""

    def __init__(self, arena: Arena) -> None:
        self.bytes = np.memmap(arena.path, np.uint8, "r+")
        self.layout = arena.layout

    def word(self, slot: int, offset: int) -> np.ndarray:
        at = 4096 + slot * self.layout.slot_stride + offset
        return self.bytes[at : at + 4].view(np.uint32)

    def ask(self, slot: int, sequence: int, n_tokens: int) -> None:
        self.word(slot, 4)[0], self.word(slot, 8)[0] = LAYER, n_tokens
        self.word(slot, 0)[0] = sequence

    def wait(self, slot: int, sequence: int, timeout_s: float = 10) -> None:
        deadline = time.monotonic() + timeout_s
        while self.word(slot, 64)[0] != sequence:
            assert time.monotonic() < deadline
            time.sleep(0)


def cpu_seconds(body: Callable[[], object]) -> float:
    """What the threads of this process use while `body` runs."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    body()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def answer(arena: Arena, slot: int, status: int) -> None:
    """End the slot's request as a worker does."""
    words = Stepper(arena)
    words.word(slot, 68)[0] = status
    words.word(slot, 64)[0] = words.word(slot, 0)[0]
