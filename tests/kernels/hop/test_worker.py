"""The doorbell and the worker that it wakes."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hop_arena import (
    EXPERTS,
    HIDDEN,
    LAYER,
    TOP_K,
    cpu_seconds,
    expected,
    fill,
)
from trimaran.arena import Arena, ArenaDims, ElementType
from trimaran.errors import KernelError
from trimaran.wire import Status
from trimaran_kernels import ExpertEngine, usable_cpus
from trimaran_kernels.hop import ArenaWorker, CallGate, HopArena


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("n", [0, 1, 4, 6])
def test_a_call_gives_what_the_engine_gives(
    tmp_path: Path, engine: ExpertEngine, dtype: ElementType, n: int
) -> None:
    with Arena(ArenaDims(HIDDEN, TOP_K, 6, 3, dtype), tmp_path) as arena:
        client = HopArena(str(arena.path))
        worker = ArenaWorker(HopArena(str(arena.path)), CallGate(engine), usable_cpus()[0])
        for slot in range(3):
            fill(arena, slot, seed=slot)
            client.ring(slot, 7 + slot, LAYER, n)
        for slot in range(3):
            assert client.wait_done(slot, 7 + slot, 5) == Status.OK
            views = arena.slot(slot)
            np.testing.assert_array_equal(views.y[:n], expected(engine, arena, slot, n))
            assert not views.y[n:].any()
        worker.stop()


def test_many_calls_in_a_row(arena: Arena, client: HopArena, worker: ArenaWorker) -> None:
    fill(arena, 0)
    for sequence in range(1, 2000):
        client.ring(0, sequence, LAYER, 1)
        assert client.wait_done(0, sequence, 5) == Status.OK


@pytest.mark.parametrize(
    ("layer", "n_tokens", "status"),
    [
        (0, 1, Status.BAD_LAYER),
        (-1, 1, Status.BAD_LAYER),
        (2**31 - 1, 1, Status.BAD_LAYER),
        (LAYER, 7, Status.BAD_TOKEN_COUNT),
        (LAYER, 2**32 - 1, Status.BAD_TOKEN_COUNT),
    ],
)
def test_bad_requests_are_a_status(
    arena: Arena, client: HopArena, worker: ArenaWorker, layer: int, n_tokens: int, status: int
) -> None:
    client.ring(1, 5, layer, n_tokens)
    assert client.wait_done(1, 5, 5) == status
    assert not arena.slot(1).y.any()


@pytest.mark.parametrize("bad", [-2, EXPERTS, 2**31 - 1, -(2**31)])
def test_bad_expert_ids_are_a_status(arena: Arena, client: HopArena, worker: ArenaWorker, bad: int) -> None:
    fill(arena, 0)
    arena.slot(0).ids[3, 1] = bad
    client.ring(0, 1, LAYER, 4)
    assert client.wait_done(0, 1, 5) == Status.BAD_EXPERT_ID
    client.ring(0, 2, LAYER, 3)
    assert client.wait_done(0, 2, 5) == Status.OK


def test_skipped_choices_add_nothing_and_are_not_counted(
    arena: Arena, client: HopArena, engine: ExpertEngine
) -> None:
    gate = CallGate(engine)
    fill(arena, 0)
    slot = arena.slot(0)
    slot.ids[1, 0] = slot.ids[2] = -1
    slot.weights[1, 0], slot.weights[2] = np.nan, np.inf
    assert gate.run_slot(client, 0, LAYER, 4) == Status.OK
    assert not slot.y[2].any()
    assert slot.y[[0, 1, 3]].any(1).all()
    assert sum(gate.expert_tokens()[LAYER]) == 4 * TOP_K - 1 - TOP_K
    whole = slot.y[1].copy()
    slot.ids[1, 0], slot.weights[1, 0] = 0, 0.0
    assert gate.run_slot(client, 0, LAYER, 4) == Status.OK
    np.testing.assert_array_equal(slot.y[1], whole)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["x", "weights"])
def test_what_is_not_finite_is_a_status(
    arena: Arena, client: HopArena, worker: ArenaWorker, where: str, value: float
) -> None:
    fill(arena, 0)
    getattr(arena.slot(0), where)[2, 1] = value
    client.ring(0, 1, LAYER, 3)
    assert client.wait_done(0, 1, 5) == Status.NOT_FINITE
    client.ring(0, 2, LAYER, 2)
    assert client.wait_done(0, 2, 5) == Status.OK


@pytest.mark.parametrize("bits", [0x7F80, 0xFF80, 0x7FC0, 0xFFFF])
def test_bf16_that_is_not_finite_is_a_status(tmp_path: Path, engine: ExpertEngine, bits: int) -> None:
    with Arena(ArenaDims(HIDDEN, TOP_K, 6, 1, "bf16"), tmp_path) as arena:
        fill(arena, 0)
        arena.slot(0).x[0, 0] = bits
        gate = CallGate(engine)
        assert gate.run_slot(HopArena(str(arena.path)), 0, LAYER, 1) == Status.NOT_FINITE
        arena.slot(0).x[0, 0] = 0x7F7F
        assert gate.run_slot(HopArena(str(arena.path)), 0, LAYER, 1) == Status.OK


def test_a_bad_slot_is_a_status(client: HopArena, engine: ExpertEngine) -> None:
    assert CallGate(engine).run_slot(client, 3, LAYER, 1) == Status.BAD_SLOT
    with pytest.raises(KernelError, match="slot"):
        client.ring(3, 1, LAYER, 1)
    with pytest.raises(KernelError, match="slot"):
        client.wait_done(3, 1, 0)


def test_waiting_ends(client: HopArena) -> None:
    start = time.monotonic()
    client.ring(0, 1, LAYER, 1)
    assert client.wait_done(0, 1, 0.05) is None
    assert 0.04 < time.monotonic() - start < 1


def test_waiting_leaves_python_running(client: HopArena) -> None:
    waiter = threading.Thread(target=client.wait_done, args=(0, 1, 0.3))
    waiter.start()
    start = time.monotonic()
    while time.monotonic() - start < 0.05:
        pass
    assert waiter.is_alive()
    waiter.join()


def test_a_stopped_worker_says_so(arena: Arena, client: HopArena, worker: ArenaWorker) -> None:
    assert not worker.finished
    worker.request_stop()
    client.ring(0, 1, LAYER, 0)
    worker.stop()
    assert worker.finished
    assert client.wait_done(0, 1, 0) in {Status.SHUTTING_DOWN, None}


def test_nobody_spins_when_idle(arena: Arena, client: HopArena, worker: ArenaWorker) -> None:
    assert cpu_seconds(lambda: client.wait_done(0, 1, 1.0)) < 0.02
