"""The native hop: layout, doorbell, and a worker that survives whatever is in its arena."""

from __future__ import annotations

import os
import resource
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trimaran.arena import Arena, ArenaDims, ArenaLayout, ElementType
from trimaran.errors import KernelError
from trimaran.gguf import GGMLType
from trimaran.wire import Status
from trimaran_kernels import ExpertEngine, ThreadPool, usable_cpus
from trimaran_kernels.hop import ArenaWorker, CallGate, HopArena, arena_layout

HIDDEN, INTERMEDIATE, EXPERTS, TOP_K, LAYER = 32, 16, 8, 2, 3
DIMS = ArenaDims(HIDDEN, TOP_K, max_tokens=6, n_slots=3, dtype="f32")


@pytest.fixture(scope="module")
def engine() -> ExpertEngine:
    random = np.random.default_rng(1)
    engine = ExpertEngine(ThreadPool(usable_cpus(1)), HIDDEN, INTERMEDIATE, EXPERTS, TOP_K, max_tokens=4)

    def matrix(rows: int, columns: int) -> tuple[int, np.ndarray]:
        values = random.standard_normal((EXPERTS, rows, columns)).astype(np.float32)
        return int(GGMLType.F32), values.view(np.uint8).reshape(-1)

    engine.add_layer(
        LAYER,
        matrix(INTERMEDIATE, HIDDEN),
        matrix(INTERMEDIATE, HIDDEN),
        matrix(HIDDEN, INTERMEDIATE),
        0,
        EXPERTS,
    )
    return engine


@pytest.fixture
def arena(tmp_path: Path) -> Iterator[Arena]:
    with Arena(DIMS, tmp_path) as arena:
        yield arena


@pytest.fixture
def client(arena: Arena) -> HopArena:
    return HopArena(str(arena.path))


@pytest.fixture
def worker(arena: Arena, engine: ExpertEngine) -> Iterator[ArenaWorker]:
    worker = ArenaWorker(HopArena(str(arena.path)), CallGate(engine), -1)
    yield worker
    worker.stop()


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


@given(
    hidden=st.integers(1, 9000),
    top_k=st.integers(1, 16),
    tokens=st.integers(1, 700),
    slots=st.integers(1, 8),
    dtype=st.sampled_from(["f32", "bf16"]),
)
def test_both_sides_compute_the_same_layout(
    hidden: int, top_k: int, tokens: int, slots: int, dtype: ElementType
) -> None:
    layout = ArenaLayout.of(ArenaDims(hidden, top_k, tokens, slots, dtype))
    assert arena_layout(hidden, top_k, tokens, slots, dtype) == (
        layout.x,
        layout.ids,
        layout.weights,
        layout.y,
        layout.slot_stride,
        layout.file_bytes,
    )


def test_an_arena_says_its_dimensions(client: HopArena) -> None:
    assert client.dims == (HIDDEN, TOP_K, 6, 3, "f32")


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


def test_requests_without_a_bell_are_seen_while_a_step_is_in_flight(
    arena: Arena, client: HopArena, worker: ArenaWorker
) -> None:
    gpu = Stepper(arena)
    for sequence in range(1, 60):  # asleep before each step, and woken before it rings
        client.begin_step()
        for slot in (0, 2):
            fill(arena, slot)
            gpu.ask(slot, sequence, 2)
        for slot in (0, 2):
            gpu.wait(slot, sequence, 0.4)  # sooner than the sleep that ends by itself
        client.end_step()


def test_nobody_spins_after_a_step(arena: Arena, client: HopArena, worker: ArenaWorker) -> None:
    client.begin_step()
    Stepper(arena).ask(0, 1, 0)
    assert client.wait_done(0, 1, 5) == Status.OK
    client.end_step()
    assert cpu_seconds(lambda: client.wait_done(0, 2, 1.0)) < 0.02


def test_a_step_that_is_never_ended_costs_little_after_a_second(
    arena: Arena, client: HopArena, worker: ArenaWorker
) -> None:
    """Its client may have been killed; if not, the next request is still seen."""
    gpu = Stepper(arena)
    client.begin_step()
    client.wait_done(0, 1, 1.3)
    assert cpu_seconds(lambda: client.wait_done(0, 1, 1.0)) < 0.2
    gpu.ask(0, 1, 0)
    gpu.wait(0, 1, 0.4)


def test_a_polling_worker_stops(arena: Arena, client: HopArena, worker: ArenaWorker) -> None:
    client.begin_step()
    started = time.monotonic()
    worker.stop()
    assert worker.finished
    assert time.monotonic() - started < 5


def test_sequences_wrap_around(arena: Arena, client: HopArena, worker: ArenaWorker) -> None:
    gpu = Stepper(arena)
    client.begin_step()
    for sequence in (2**31 - 1, 2**31, 2**32 - 1, 1):
        gpu.ask(1, sequence, 0)
        gpu.wait(1, sequence)
    client.end_step()


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


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_slot_contents_kill_the_worker(
    arena: Arena, client: HopArena, worker: ArenaWorker, data: st.DataObject
) -> None:
    stride = arena.layout.slot_stride
    slot = data.draw(st.integers(0, 2))
    control = struct.pack(
        "<IiI",
        data.draw(st.integers(0, 2**32 - 1)),
        data.draw(st.sampled_from([LAYER, 0, -1, 2**31 - 1, -(2**31)]) | st.integers(-(2**31), 2**31 - 1)),
        data.draw(st.integers(0, 8) | st.integers(0, 2**32 - 1)),
    )
    ids = data.draw(
        st.lists(st.integers(-2, EXPERTS) | st.integers(-(2**31), 2**31 - 1), min_size=12, max_size=12)
    )
    with arena.path.open("r+b") as file:
        file.seek(4096 + slot * stride + arena.layout.ids)
        file.write(np.array(ids, np.int32).tobytes())
        file.write(data.draw(st.binary(min_size=0, max_size=48)))
        file.seek(4096 + slot * stride)
        file.write(control)
        file.seek(64)  # the bell
        file.write(os.urandom(4))
    client.ring((slot + 1) % 3, 0xFFFF, LAYER, 0)
    client.ring((slot + 1) % 3, 0xFFFE, LAYER, 0)
    assert client.wait_done((slot + 1) % 3, 0xFFFE, 5) == Status.OK


def test_a_writer_beside_the_call_harms_nobody(arena: Arena, client: HopArena, worker: ArenaWorker) -> None:
    fill(arena, 0)
    stopped = threading.Event()

    def scribble() -> None:
        random = np.random.default_rng(0)
        while not stopped.is_set():
            arena.slot(0).ids[:] = random.integers(-(2**31), 2**31 - 1, (6, TOP_K))
            arena.slot(0).ids[:] = 1

    thread = threading.Thread(target=scribble)
    thread.start()
    seen = set()
    for sequence in range(1, 300):
        client.ring(0, sequence, LAYER, 6)
        seen.add(client.wait_done(0, sequence, 5))
    stopped.set()
    thread.join()
    assert seen <= {Status.OK, Status.BAD_EXPERT_ID}


def corrupt(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.mark.parametrize(
    ("offset", "data", "reason"),
    [
        (0, b"NOTARENA", "not an arena"),
        (8, struct.pack("<I", 3), "version 3"),
        (12, struct.pack("<I", 9), "element type"),
        (16, struct.pack("<I", 0), "hidden size"),
        (16, struct.pack("<I", 2**32 - 1), "hidden size"),
        (20, struct.pack("<I", 0), "top_k"),
        (24, struct.pack("<I", 2**31), "token count"),
        (24, struct.pack("<I", 900), "contradict"),
        (28, struct.pack("<I", 0), "slot count"),
        (28, struct.pack("<I", 4), "contradict"),
        (32, struct.pack("<Q", 0), "contradict"),
        (40, struct.pack("<Q", 2**63), "contradict"),
    ],
)
def test_bad_headers_are_refused(arena: Arena, offset: int, data: bytes, reason: str) -> None:
    corrupt(arena.path, offset, data)
    with pytest.raises(KernelError, match=reason):
        HopArena(str(arena.path))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(header=st.binary(min_size=40, max_size=40))
def test_no_header_kills(arena: Arena, header: bytes) -> None:
    corrupt(arena.path, 8, header)
    with pytest.raises(KernelError):
        HopArena(str(arena.path))


def test_bad_files_are_refused(tmp_path: Path, arena: Arena) -> None:
    with pytest.raises(KernelError, match="No such file"):
        HopArena(str(tmp_path / "missing"))
    with pytest.raises(KernelError, match="Is a directory"):
        HopArena(str(tmp_path))
    (tmp_path / "short").write_bytes(b"TRIARENA")
    (tmp_path / "short").chmod(0o600)
    with pytest.raises(KernelError, match="too short"):
        HopArena(str(tmp_path / "short"))
    (tmp_path / "link").symlink_to(arena.path)
    with pytest.raises(KernelError):
        HopArena(str(tmp_path / "link"))
    os.mkfifo(tmp_path / "fifo", 0o600)
    with pytest.raises(KernelError, match="not a regular file"):
        HopArena(str(tmp_path / "fifo"))
    os.truncate(arena.path, arena.layout.file_bytes - 4096)
    with pytest.raises(KernelError, match="contradict"):
        HopArena(str(arena.path))
    arena.path.chmod(0o644)
    with pytest.raises(KernelError, match="0600"):
        HopArena(str(arena.path))


def test_an_arena_that_is_cut_short_while_it_is_served_is_lost(
    arena: Arena, client: HopArena, worker: ArenaWorker
) -> None:
    fill(arena, 2)
    cut = threading.Event()

    def call_on() -> int:
        sequence = 0
        while not (cut.is_set() and worker.finished):
            sequence += 1
            client.ring(2, sequence, LAYER, 6)
            client.wait_done(2, sequence, 0.01)
        return sequence

    with ThreadPoolExecutor(1) as callers:
        calls = callers.submit(call_on)
        assert not client.lost
        os.truncate(arena.path, 0)
        cut.set()
        assert calls.result(20) > 0
    assert client.lost
    worker.stop()


def test_an_arena_of_another_model_is_refused(tmp_path: Path, engine: ExpertEngine) -> None:
    with (
        Arena(ArenaDims(HIDDEN + 1, TOP_K, 6, 1, "f32"), tmp_path) as arena,
        pytest.raises(KernelError, match="not the model's"),
    ):
        ArenaWorker(HopArena(str(arena.path)), CallGate(engine), -1)


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
