"""The gate before the engine: what it counts, remembers and takes."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hop_arena import (
    DIMS,
    EXPERTS,
    HIDDEN,
    LAYER,
    TOP_K,
    expected,
    fill,
)
from trimaran.arena import Arena
from trimaran.errors import KernelError
from trimaran.wire import Status
from trimaran_kernels import ExpertEngine
from trimaran_kernels.hop import ArenaWorker, CallGate, HopArena


def test_the_gate_counts(arena: Arena, client: HopArena, engine: ExpertEngine) -> None:
    fill(arena, 0)
    gate = CallGate(engine)
    assert gate.run_slot(client, 0, LAYER, 2) == Status.OK
    assert gate.run_slot(client, 0, LAYER + 1, 2) == Status.BAD_LAYER
    counters = gate.counters()
    assert (counters["calls"], counters["failures"], counters["tokens"], counters["waiting"]) == (2, 1, 2, 0)
    assert counters["busy_ns"] > 0
    assert counters["bytes_read"] > 0
    by_time = {name: count for name, count in counters.items() if name.startswith("busy_le_")}
    assert sum(by_time.values()) == counters["engine_calls"] == 1, "the call that got to the engine"
    bounds = [float(name.removeprefix("busy_le_")) for name in by_time]
    assert bounds == sorted(bounds)
    its_bound = bounds[list(by_time.values()).index(1)]
    assert counters["busy_ns"] <= its_bound
    assert counters["busy_ns"] > max((bound for bound in bounds if bound < its_bound), default=0)


def test_the_gate_takes_arrays_of_any_length(engine: ExpertEngine) -> None:
    random = np.random.default_rng(0)
    x = random.standard_normal((11, HIDDEN)).astype(np.float32)
    ids = random.integers(0, EXPERTS, (11, TOP_K)).astype(np.int32)
    weights = random.random((11, TOP_K)).astype(np.float32)
    y, row = np.empty_like(x), np.empty_like(x[:1])
    gate = CallGate(engine)
    assert gate.run(LAYER, x, ids, weights, y) == Status.OK
    for token in range(11):
        assert (
            engine.forward(
                LAYER, x[token : token + 1], ids[token : token + 1], weights[token : token + 1], row
            )
            == 0
        )
        np.testing.assert_array_equal(y[token], row[0])
    for bad in ((x[:10], ids, weights, y), (x, ids[:, :1], weights, y), (x, ids, weights, y[:3])):
        with pytest.raises(KernelError):
            gate.run(LAYER, *bad)


def test_several_threads_share_the_gate(engine: ExpertEngine, tmp_path: Path) -> None:
    gate = CallGate(engine)
    failures: list[object] = []

    def talk(seed: int) -> None:
        with Arena(DIMS, tmp_path) as arena:
            fill(arena, 0, seed)
            want = expected(engine, arena, 0, 6)
            worker = ArenaWorker(HopArena(str(arena.path)), gate, -1)
            client = HopArena(str(arena.path))
            for sequence in range(1, 100):
                arena.slot(0).y[:] = 0
                client.ring(0, sequence, LAYER, 6)
                if client.wait_done(0, sequence, 5) != Status.OK or (arena.slot(0).y != want).any():
                    failures.append((seed, sequence))
            worker.stop()

    threads = [threading.Thread(target=talk, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_the_gate_remembers_when_calls_were_computed(engine: ExpertEngine) -> None:
    gate = CallGate(engine)
    x = np.zeros((2, HIDDEN), np.float32)
    ids, weights = np.zeros((2, TOP_K), np.int32), np.zeros((2, TOP_K), np.float32)
    start = time.monotonic_ns()
    assert gate.run(LAYER, x, ids, weights, np.empty_like(x)) == Status.OK
    between = time.monotonic_ns()
    assert gate.run(LAYER, x[:1], ids[:1], weights[:1], np.empty_like(x[:1])) == Status.OK
    (first, second), end = gate.calls_since(start), time.monotonic_ns()
    assert (first[:2], second[:2]) == ((LAYER, 2), (LAYER, 1))
    assert start <= first[2] <= first[3] <= between <= second[2] <= second[3] <= end
    assert gate.calls_since(between) == [second]
