"""The hop's GPU kernels in the interpreter, with the expert service's own worker at the other end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import interpreted
import numpy as np
import pytest
import torch
from torch import Tensor
from trimaran.arena import Arena, ArenaDims, ElementType
from trimaran.gguf import GGMLType
from trimaran.wire import Status
from trimaran_kernels import ExpertEngine, ThreadPool, usable_cpus
from trimaran_kernels.gpu import hop
from trimaran_kernels.gpu.hop import HopFailure, HopState, SlotPlace, bf16_bits, submit, wait
from trimaran_kernels.gpu.hop_reference import collected_reference, sent_reference
from trimaran_kernels.hop import ArenaWorker, CallGate, HopArena

HIDDEN, INTERMEDIATE, EXPERTS, TOP_K, LAYER, TOKENS = 2100, 32, 8, 3, 3, 5
CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(interpreted.ON_GPU, reason="memory of the CPU: `make gpu-check`")


def make_engine(experts: slice) -> ExpertEngine:
    random = np.random.default_rng(1)
    n = experts.stop - experts.start
    engine = ExpertEngine(ThreadPool(usable_cpus(1)), HIDDEN, INTERMEDIATE, EXPERTS, TOP_K, max_tokens=4)

    def matrix(rows: int, columns: int) -> tuple[int, np.ndarray]:
        values = (random.standard_normal((EXPERTS, rows, columns)) / columns**0.5).astype(np.float32)
        return int(GGMLType.F32), values[experts].view(np.uint8).reshape(-1)

    matrices = (matrix(INTERMEDIATE, HIDDEN), matrix(INTERMEDIATE, HIDDEN), matrix(HIDDEN, INTERMEDIATE))
    engine.add_layer(LAYER, *matrices, experts.start, n)
    return engine


@pytest.fixture(scope="module")
def halves() -> tuple[ExpertEngine, ExpertEngine]:
    """Two shards, each with half of the experts."""
    return make_engine(slice(0, 4)), make_engine(slice(4, 8))


@dataclass
class Rig:
    """A device's end of the hop, and shards behind it."""

    arenas: list[Arena]
    engines: tuple[ExpertEngine, ...]
    workers: list[ArenaWorker] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.clients = [HopArena(str(arena.path)) for arena in self.arenas]
        self.state = HopState.make(len(self.arenas), 2, CPU)
        for shard, arena in enumerate(self.arenas):
            self.state.arenas[shard] = arena.memory.ctypes.data
        dims, layout = self.arenas[0].dims, self.arenas[0].layout
        self.is_bf16 = dims.dtype == "bf16"
        self.places = [
            SlotPlace(
                slot,
                self.arenas[0].slot_start(slot),
                layout.x,
                layout.ids,
                layout.weights,
                layout.y,
                self.is_bf16,
            )
            for slot in range(dims.n_slots)
        ]

    def serve(self) -> None:
        for arena, engine, client in zip(self.arenas, self.engines, self.clients, strict=True):
            self.workers.append(ArenaWorker(HopArena(str(arena.path)), CallGate(engine), -1))
            client.begin_step()

    def call(
        self, x: Tensor, ids: Tensor, weights: Tensor, live: int, slot: int = 0, **options: float
    ) -> Tensor:
        self.submit(x, ids, weights, live, slot, int(options.get("layer", LAYER)))
        return self.wait(x, live, slot, options.get("timeout_s", 30.0))

    def submit(
        self, x: Tensor, ids: Tensor, weights: Tensor, live: int, slot: int = 0, layer: int = LAYER
    ) -> None:
        submit(self.state, self.places[slot], layer, x, ids, weights, torch.tensor([live], dtype=torch.int32))

    def wait(self, x: Tensor, live: int, slot: int = 0, timeout_s: float = 30.0) -> Tensor:
        out = torch.full_like(x, 7)
        alive = torch.tensor([live], dtype=torch.int32)
        return wait(self.state, self.places[slot], LAYER, out, alive, timeout_s)

    def expected(self, x: Tensor, ids: Tensor, weights: Tensor, live: int) -> Tensor:
        sent = sent_reference(x, is_bf16=self.is_bf16)[:live].contiguous()
        answers = []
        for engine in self.engines:
            y = torch.empty_like(sent)
            arrays = (part[:live].contiguous().numpy() for part in (ids, weights))
            assert engine.forward(LAYER, sent.numpy(), *arrays, y.numpy()) == Status.OK
            answers.append(y)
        return collected_reference(answers, len(x), x.dtype)

    @property
    def error(self) -> list[int]:
        return self.state.report[:4].tolist()


@pytest.fixture(params=["f32", "bf16"])
def element(request: pytest.FixtureRequest) -> ElementType:
    return request.param


@pytest.fixture
def rig(tmp_path: Path, halves: tuple[ExpertEngine, ...], element: ElementType) -> Iterator[Rig]:
    """Nobody serves it yet."""
    dims = ArenaDims(HIDDEN, TOP_K, TOKENS, 2, element)
    rig = Rig([Arena(dims, tmp_path) for _ in halves], halves)
    yield rig
    for worker in rig.workers:
        worker.stop()
    for arena in rig.arenas:
        arena.close()


def batch(n: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, HIDDEN, generator=generator).to(dtype)
    ids = torch.randint(0, EXPERTS, (n, TOP_K), generator=generator, dtype=torch.int32)
    return x, ids, torch.rand(n, TOP_K, generator=generator)


@pytest.mark.parametrize(("n", "live"), [(1, 1), (4, 4), (5, 3), (2, 0)])
def test_the_shards_answers_are_summed(rig: Rig, n: int, live: int) -> None:
    """Rows that are not live do not cross, and come back as 0."""
    rig.serve()
    tokens = batch(n)
    torch.testing.assert_close(rig.call(*tokens, live), rig.expected(*tokens, live), rtol=0, atol=0)
    assert rig.error == [0, 0, 0, 0]
    assert all(arena.slot(0).x[live:].any() == 0 for arena in rig.arenas)
    assert rig.state.report[5] == 1


@pytest.mark.parametrize("element", ["bf16"], indirect=True)
def test_16_bit_activations_cross(rig: Rig) -> None:
    rig.serve()
    tokens = batch(2, torch.float16)
    got, expected = rig.call(*tokens, 2), rig.expected(*tokens, 2)
    torch.testing.assert_close(got, expected, rtol=2e-3, atol=1e-4)  # the interpreter's float16


def test_slots_and_steps_follow_each_other(rig: Rig) -> None:
    """Two calls in flight, one after the other's answer; sequences wrap around and skip 0."""
    rig.serve()
    rig.state.sequences[:] = torch.tensor([-2, 2**31 - 2], dtype=torch.int32)
    for step in range(3):
        first, second = batch(2, seed=step), batch(2, seed=step + 9)
        rig.submit(*first, 2, slot=0)
        rig.submit(*second, 1, slot=1)
        torch.testing.assert_close(rig.wait(first[0], 2, 0), rig.expected(*first, 2), rtol=0, atol=0)
        torch.testing.assert_close(rig.wait(second[0], 1, 1), rig.expected(*second, 1), rtol=0, atol=0)
    assert rig.state.sequences.tolist() == [2, -(2**31) + 1]
    assert rig.state.arrivals.item() == 0


def test_a_shard_that_does_not_answer_is_a_timeout(rig: Rig) -> None:
    """Later hops of the step do nothing; once the error is cleared, the next step goes on."""
    tokens = batch(2)
    assert not rig.call(*tokens, 2, timeout_s=0.02).any()
    assert rig.error == [HopFailure.TIMEOUT, LAYER, 0, 0]
    before = rig.state.sequences.tolist()
    assert not rig.call(*tokens, 2, slot=1).any()
    assert rig.state.sequences.tolist() == before
    rig.state.report[:4] = 0
    rig.serve()  # and answers the old request first
    torch.testing.assert_close(rig.call(*tokens, 2), rig.expected(*tokens, 2), rtol=0, atol=0)


def test_the_shard_that_does_not_answer_is_named(rig: Rig) -> None:
    """Each has the whole time, however long the ones before it took."""
    rig.serve()
    rig.workers.pop().stop()
    tokens = batch(2)
    assert not rig.call(*tokens, 2, timeout_s=0.05).any()
    assert rig.error == [HopFailure.TIMEOUT, LAYER, 1, 0]


def test_a_shard_has_its_time_from_its_turn_on(rig: Rig) -> None:
    """The first one answers late, the second one a little later: together they take longer than the limit."""
    tokens = batch(2)
    rig.submit(*tokens, 2)
    base = rig.places[0].base
    words = [arena.memory.view(np.int32) for arena in rig.arenas]
    loads = [0]

    def late(pointer: Any) -> Any:
        loads[0] += 1
        for shard, looks in enumerate((30, 60)):
            if loads[0] == looks:
                words[shard][(base + 64) // 4] = rig.state.sequences[0].item()
        return plain(pointer)

    plain = hop.load_acquire
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hop, "load_acquire", late)
        rig.wait(tokens[0], 2, timeout_s=0.045)
    assert loads[0] > 60
    assert rig.error == [0, 0, 0, 0]


def test_an_abandoned_arena_ends_the_wait(rig: Rig) -> None:
    """As when the host sees that the peer is gone."""
    tokens = batch(1)
    timer = threading.Timer(0.3, rig.clients[0].abandon)
    timer.start()
    started = time.monotonic()
    assert not rig.call(*tokens, 1, timeout_s=1000.0).any()
    assert time.monotonic() - started < 20
    assert rig.error == [HopFailure.ABANDONED, LAYER, 0, 0]
    timer.join()


@pytest.mark.parametrize(
    ("change", "status"),
    [("layer", Status.BAD_LAYER), ("ids", Status.BAD_EXPERT_ID), ("x", Status.NOT_FINITE)],
)
def test_a_refusal_is_told(rig: Rig, change: str, status: int) -> None:
    rig.serve()
    x, ids, weights = batch(2)
    if change == "x":
        x[1, 5] = float("nan")
    if change == "ids":
        ids[1, 1] = EXPERTS
    out = rig.call(x, ids, weights, 2, layer=LAYER + (change == "layer"))
    assert not out.any()
    assert rig.error == [HopFailure.STATUS, LAYER, 0, status]


def test_rounding_to_bf16_is_torchs() -> None:
    """All kinds of bits, NaN and infinity among them."""
    import triton
    import triton.language as tl

    @triton.jit
    def kernel(x, out, size: tl.constexpr):
        i = tl.arange(0, size)
        tl.store(out + i, bf16_bits(tl.load(x + i)))

    bits = torch.randint(-(2**31), 2**31, (4096,), generator=torch.Generator().manual_seed(1)).int()
    bits[:6] = torch.tensor([0x7F800000, -0x800000, 0x7FFFFFFF, 0x7F800001, 0x7F7FFFFF, 0x3F808000])
    x, out = bits.view(torch.float32), torch.empty(4096, dtype=torch.uint16)
    kernel[(1,)](x, out, size=4096)
    got, expected = out.view(torch.bfloat16), x.to(torch.bfloat16)
    assert torch.equal(got.isnan(), expected.isnan())
    assert torch.equal(got[~got.isnan()], expected[~got.isnan()])
