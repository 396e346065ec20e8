"""Calls that wait for the same layer share one engine call, and nobody's result or status changes by it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from trimaran.errors import KernelError
from trimaran.gguf import GGMLType
from trimaran.wire import Status
from trimaran_kernels import ExpertEngine, ThreadPool, usable_cpus
from trimaran_kernels.hop import CallGate

HIDDEN, WIDE, EXPERTS, TOP_K = 64, 96, 6, 2
LAYERS = (3, 4)
MOST = 32


@pytest.fixture(scope="module")
def engine() -> ExpertEngine:
    random = np.random.default_rng(0)
    engine = ExpertEngine(ThreadPool(usable_cpus(1)), HIDDEN, WIDE, EXPERTS, TOP_K, max_tokens=MOST)
    for layer in LAYERS:
        gate, up, down = (
            (int(GGMLType.F32), random.standard_normal(EXPERTS * HIDDEN * WIDE, np.float32).view(np.uint8))
            for _ in range(3)
        )
        engine.add_layer(layer, gate, up, down, 0, EXPERTS)
    return engine


def make_call(n: int, seed: int, dtype: type = np.float32) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    x = random.standard_normal((n, HIDDEN)).astype(np.float32)
    ids = random.integers(0, EXPERTS, (n, TOP_K)).astype(np.int32)
    weights = random.random((n, TOP_K)).astype(np.float32)
    return (x if dtype is np.float32 else (x.view(np.uint32) >> 16).astype(np.uint16)), ids, weights


class Crowd:
    """Calls that all wait while a long one keeps the engine busy."""

    def __init__(self, gate: CallGate) -> None:
        self._gate = gate
        self._threads: list[threading.Thread] = []
        self.answers: dict[int, tuple[int, np.ndarray]] = {}

    def call(self, number: int, layer: int, call: tuple[np.ndarray, ...]) -> None:
        """One more call, in a thread of its own; it waits when this returns, or has ended."""
        before = self._gate.counters()

        def run() -> None:
            y = np.zeros_like(call[0])
            self.answers[number] = (self._gate.run(layer, *call, y), y)

        self._threads.append(threading.Thread(target=run))
        self._threads[-1].start()
        deadline = time.monotonic() + 20
        while True:
            now = self._gate.counters()
            if now["waiting"] > before["waiting"] or now["calls"] > before["calls"]:
                return
            assert time.monotonic() < deadline
            time.sleep(0.001)

    def join(self) -> None:
        for thread in self._threads:
            thread.join()


def busy_call() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Long enough for many calls to queue up behind it: cut in pieces, it is one turn all the same."""
    return make_call(60_000, 99)


def alone(engine: ExpertEngine, layer: int, call: tuple[np.ndarray, ...]) -> np.ndarray:
    y = np.zeros_like(call[0])
    assert CallGate(engine).run(layer, *call, y) == Status.OK
    return y


def crowded(engine: ExpertEngine, calls: list[tuple[int, tuple[Any, ...]]]) -> tuple[Crowd, dict[str, int]]:
    """Runs calls (layer, tensors) behind a busy one; their answers, and the counters without the busy one."""
    gate = CallGate(engine)
    crowd = Crowd(gate)
    busy = busy_call()
    crowd.call(-1, LAYERS[0], busy)
    deadline = time.monotonic() + 20
    while gate.counters()["engine_calls"] == 0:  # its first piece is done: it is in the engine
        assert time.monotonic() < deadline
        time.sleep(0.001)
    for number, (layer, call) in enumerate(calls):
        crowd.call(number, layer, call)
    assert gate.counters()["merged_calls"] == 0, "the busy call ended too early"
    assert -1 not in crowd.answers, "the busy call ended too early"
    crowd.join()
    counters = gate.counters()
    counters["engine_calls"] -= -(-len(busy[0]) // MOST)
    return crowd, counters


def test_calls_for_one_layer_become_one(engine: ExpertEngine) -> None:
    calls = [(LAYERS[1], make_call(n, n)) for n in (1, 5, 0, 3, 8)]
    crowd, counters = crowded(engine, calls)
    assert counters["engine_calls"] == 1
    assert counters["merged_calls"] == 5
    assert counters["calls"] == 6
    for number, (layer, call) in enumerate(calls):
        status, y = crowd.answers[number]
        assert status == Status.OK
        np.testing.assert_array_equal(y, alone(engine, layer, call))


def test_a_bad_call_fails_alone(engine: ExpertEngine) -> None:
    good = [make_call(2, seed) for seed in range(3)]
    nan, wild = make_call(2, 7), make_call(2, 8)
    nan[0][1, 3] = np.nan
    wild[1][0, 0] = EXPERTS
    calls = [(LAYERS[1], call) for call in (good[0], nan, good[1], wild, good[2])] + [(9, make_call(1, 1))]
    crowd, counters = crowded(engine, calls)
    statuses = [crowd.answers[number][0] for number in range(6)]
    assert statuses == [0, Status.NOT_FINITE, 0, Status.BAD_EXPERT_ID, 0, Status.BAD_LAYER]
    assert counters["engine_calls"] == 1
    assert counters["failures"] == 3
    for number, call in zip((0, 2, 4), good, strict=True):
        np.testing.assert_array_equal(crowd.answers[number][1], alone(engine, LAYERS[1], call))
    assert not crowd.answers[1][1].any()


def test_merged_calls_skip_each_their_own(engine: ExpertEngine) -> None:
    calls = [(LAYERS[1], make_call(3, seed)) for seed in range(3)]
    for number, (_, (_, ids, weights)) in enumerate(calls):
        ids[number] = -1
        weights[number] = np.nan
    crowd, counters = crowded(engine, calls)
    assert counters["merged_calls"] == 3
    for number, (layer, call) in enumerate(calls):
        status, y = crowd.answers[number]
        assert status == Status.OK
        assert not y[number].any()
        np.testing.assert_array_equal(y, alone(engine, layer, call))


def test_only_what_fits_together_is_merged(engine: ExpertEngine) -> None:
    one, other = LAYERS
    calls = [
        (other, make_call(20, 0)),  # the first turn: takes along what fits
        (one, make_call(4, 1)),  # the second: another layer
        (other, make_call(20, 2)),  # the third: too long for the first turn
        (other, make_call(12, 3)),  # with the first
        (one, make_call(4, 4, np.uint16)),  # the fourth: another element type
        (one, make_call(4, 5)),  # with the second
        (other, make_call(70, 6)),  # the fifth, in three pieces
    ]
    crowd, counters = crowded(engine, calls)
    assert counters["engine_calls"] == 4 + 3
    assert counters["merged_calls"] == 4
    for number, (layer, call) in enumerate(calls):
        status, y = crowd.answers[number]
        assert status == Status.OK
        np.testing.assert_array_equal(y, alone(engine, layer, call))


def test_a_long_call_does_not_ride_with_a_short_one(engine: ExpertEngine) -> None:
    one, _ = LAYERS
    calls = [
        (one, make_call(1, 0)),  # the first turn
        (one, make_call(17, 1)),  # the second: too much company for one token
        (one, make_call(12, 2)),  # with the first
        (one, make_call(2, 3)),  # with the first
        (one, make_call(2, 4)),  # with the first, the 17th token
        (one, make_call(3, 5)),  # with the second
    ]
    crowd, counters = crowded(engine, calls)
    assert counters["engine_calls"] == 2
    assert counters["merged_calls"] == 6
    for number, (layer, call) in enumerate(calls):
        status, y = crowd.answers[number]
        assert status == Status.OK
        np.testing.assert_array_equal(y, alone(engine, layer, call))


def test_callers_that_are_no_workers_wait_for_nobody(engine: ExpertEngine) -> None:
    gate = CallGate(engine)
    for turn in range(20):
        call = make_call(16, turn)
        assert gate.run(LAYERS[turn % 2], *call, np.empty_like(call[0])) == Status.OK
    assert gate.counters()["gather_waits"] == gate.counters()["gather_ns"] == 0


def test_many_clients_at_once_get_their_own_answers(engine: ExpertEngine) -> None:
    gate = CallGate(engine)
    wrong: list[int] = []

    def client(seed: int) -> None:
        for turn in range(40):
            layer, call = LAYERS[turn % 2], make_call(1 + (seed + turn) % 5, 100 * seed + turn)
            y = np.zeros_like(call[0])
            if gate.run(layer, *call, y) != Status.OK or not np.array_equal(y, alone(engine, layer, call)):
                wrong.append(seed)

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counters = gate.counters()
    assert wrong == []
    assert counters["calls"] == 240
    assert counters["waiting"] == 0
    assert counters["engine_calls"] <= 240


def test_latencies_are_counted_by_layer(engine: ExpertEngine) -> None:
    gate = CallGate(engine)
    for _ in range(3):
        assert gate.run(LAYERS[1], *make_call(2, 0), np.zeros((2, HIDDEN), np.float32)) == Status.OK
    latencies = gate.latencies()
    assert set(latencies) == {LAYERS[1]}
    assert sum(latencies[LAYERS[1]]) == 3
    bounds = [name for name in gate.counters() if name.startswith("busy_le_")]
    assert [gate.counters()[bound] for bound in bounds] == latencies[LAYERS[1]]


def test_a_recording_is_bounded_and_private(engine: ExpertEngine, tmp_path: Any) -> None:
    gate = CallGate(engine)
    path = tmp_path / "calls"
    call = make_call(2, 0)
    one = 32 + 2 * (2 * HIDDEN * 4 + 2 * TOP_K * 4)
    recorder = gate.record(str(path), 128 + 2 * one + 10, "print")
    for _ in range(3):
        assert gate.run(LAYERS[0], *call, np.zeros_like(call[0])) == Status.OK
    assert (recorder.calls, recorder.bytes, recorder.full) == (2, 128 + 2 * one, True)
    assert path.stat().st_size == 128 + 2 * one
    assert path.stat().st_mode & 0o777 == 0o600
    gate.stop_recording()
    with pytest.raises(KernelError, match="File exists"):
        gate.record(str(path), 1 << 20, "")
    with pytest.raises(KernelError, match="No such file"):
        gate.record(str(tmp_path / "none" / "calls"), 1 << 20, "")


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Callable[[], None]:
    before = threading.active_count()
    yield  # type: ignore[misc]
    assert threading.active_count() == before
