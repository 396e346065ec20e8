"""The client's end: one native call starts all shards, another waits for their sum."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import hop_arena
import numpy as np
import pytest
from hop_arena import EXPERTS, HIDDEN, LAYER, TOP_K, answer, fill
from numpy.typing import NDArray
from trimaran.arena import Arena, ArenaDims, ElementType
from trimaran.errors import KernelError
from trimaran.wire import Status
from trimaran_kernels import ExpertEngine
from trimaran_kernels.hop import ArenaWorker, CallGate, HopArena, HopCall, HopLine

Tokens = tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.float32]]
MakeLine = Callable[..., "Shard"]


class Shard:
    """An arena, its client's line, and its worker if there is one."""

    def __init__(self, arena: Arena, engine: ExpertEngine, *, first_slot: int, serves: bool) -> None:
        self.arena = arena
        self.memory = HopArena(str(arena.path))
        self.line = HopLine(self.memory, first_slot)
        self.worker = ArenaWorker(self.memory, CallGate(engine), -1) if serves else None

    def answer(self, slot: int, status: int, y: float) -> None:
        """What a worker writes, by hand."""
        self.arena.slot(slot).y[:] = y
        answer(self.arena, slot, status)


@pytest.fixture
def shard(tmp_path: Path, engine: ExpertEngine) -> Iterator[MakeLine]:
    """Makes shards."""
    with ExitStack() as stack:

        def make(
            dtype: ElementType = "f32",
            n_slots: int = 2,
            first_slot: int = 0,
            serves: bool = True,
            top_k: int = TOP_K,
        ) -> Shard:
            dims = ArenaDims(HIDDEN, top_k, max_tokens=6, n_slots=n_slots, dtype=dtype)
            arena = stack.enter_context(Arena(dims, tmp_path))
            made = Shard(arena, engine, first_slot=first_slot, serves=serves)
            if made.worker is not None:
                stack.callback(made.worker.stop)
            return made

        yield make


def tokens(n: int, seed: int = 0) -> Tokens:
    random = np.random.default_rng(seed)
    return (
        random.standard_normal((n, HIDDEN)).astype(np.float32),
        random.integers(0, EXPERTS, (n, TOP_K)).astype(np.int32),
        random.random((n, TOP_K), np.float32),
    )


def computed(engine: ExpertEngine, batch: Tokens) -> NDArray[np.float32]:
    y = np.empty_like(batch[0])
    assert CallGate(engine).run(LAYER, *batch, y) == Status.OK
    return y


def started(shards: list[Shard], batch: Tokens) -> HopCall:
    call = HopCall.start([shard.line for shard in shards], LAYER, *batch)
    assert call is not None
    return call


@pytest.mark.parametrize("n", [0, 1, 6])
@pytest.mark.parametrize("n_shards", [1, 3])
def test_answers_are_summed(shard: MakeLine, engine: ExpertEngine, n: int, n_shards: int) -> None:
    shards = [shard() for _ in range(n_shards)]
    batch = tokens(n)
    expected = computed(engine, batch)
    for _ in range(20):
        y = np.full_like(batch[0], np.nan)
        call = started(shards, batch)
        assert call.collect(5, y) == Status.OK
        assert call.shard == n_shards
        np.testing.assert_array_equal(y, sum([expected] * (n_shards - 1), expected))
        assert [one.line.n_free for one in shards] == [2] * n_shards


def test_bf16_is_rounded_on_the_way(shard: MakeLine) -> None:
    one = shard("bf16")
    x, ids, weights = tokens(4)
    x.view(np.uint32)[:] &= 0xFFFF0000
    y, same = np.empty_like(x), np.empty_like(x)
    bits = (x.view(np.uint32) >> 16).astype(np.uint16)
    assert started([one], (x, ids, weights)).collect(5, y) == Status.OK
    call = HopCall.start([one.line], LAYER, bits, ids, weights)
    assert call is not None
    assert call.collect(5, same) == Status.OK
    assert y.any()
    np.testing.assert_array_equal(y, same)
    assert not (y.view(np.uint32) & 0xFFFF).any()


def test_several_calls_at_once_end_in_any_order(shard: MakeLine, engine: ExpertEngine) -> None:
    one = shard(n_slots=4)
    batches = [tokens(3, seed) for seed in range(4)]
    calls = [started([one], batch) for batch in batches]
    assert HopCall.start([one.line], LAYER, *batches[0]) is None
    for call, batch in reversed(list(zip(calls, batches, strict=True))):
        y = np.empty_like(batch[0])
        assert call.collect(5, y) == Status.OK
        np.testing.assert_array_equal(y, computed(engine, batch))


def test_a_full_shard_keeps_the_others_free(shard: MakeLine) -> None:
    free, full = shard(), shard(n_slots=1, serves=False)
    waiting = started([full], tokens(1))
    assert HopCall.start([free.line, full.line], LAYER, *tokens(1)) is None
    assert (free.line.n_free, full.line.n_free) == (2, 0)
    waiting.abandon()


def test_the_first_slots_may_belong_to_a_gpu(shard: MakeLine) -> None:
    one = shard(n_slots=3, first_slot=2, serves=False)
    fill(one.arena, 0)
    before = one.arena.slot(0).x.copy()
    call = started([one], tokens(6, seed=5))
    np.testing.assert_array_equal(one.arena.slot(0).x, before)
    assert HopCall.start([one.line], LAYER, *tokens(1)) is None
    call.abandon()
    with pytest.raises(KernelError, match="first_slot"):
        HopLine(one.memory, 3)


def test_a_wait_may_be_taken_up_again(shard: MakeLine) -> None:
    first, second = shard(serves=False), shard(serves=False)
    call = started([first, second], tokens(2))
    y = np.empty((2, HIDDEN), np.float32)
    before = time.monotonic()
    assert call.collect(0.05, y) is None
    assert 0.04 < time.monotonic() - before < 5
    assert call.shard == 0
    first.answer(0, Status.OK, 3.0)
    assert call.collect(0, y) is None
    assert call.shard == 1
    second.answer(0, Status.OK, 4.0)
    assert call.collect(0, y) == Status.OK
    assert (y == 7).all()


def test_a_refusal_is_a_status_and_frees_what_was_answered(shard: MakeLine) -> None:
    first, second, third = (shard(serves=False) for _ in range(3))
    call = started([first, second, third], tokens(1))
    y = np.empty((1, HIDDEN), np.float32)
    first.answer(0, Status.OK, 1.0)
    second.answer(0, Status.BAD_LAYER, 2.0)
    assert call.collect(1, y) == Status.BAD_LAYER
    assert call.shard == 1
    assert call.collect(0, y) == Status.INTERNAL, "nothing is left to wait for"
    assert [one.line.n_free for one in (first, second, third)] == [2, 2, 1]
    call.abandon()
    assert third.line.n_free == 1, "the shard may still write there"
    third.answer(0, Status.OK, 5.0)
    assert third.line.n_free == 2


def test_a_call_that_goes_gives_its_slot_back_once_answered(shard: MakeLine) -> None:
    one = shard(n_slots=1, serves=False)
    call: HopCall | None = started([one], tokens(1))
    del call
    assert one.line.n_free == 0
    one.answer(0, Status.OK, 1.0)
    late = started([one], tokens(1))
    y = np.empty((1, HIDDEN), np.float32)
    assert late.collect(0, y) is None, "the old answer is not taken for the new one"
    late.abandon()
    late.abandon()
    assert late.collect(0, y) == Status.INTERNAL


CLIENT = """
import sys
import numpy as np
from hop_arena import HIDDEN, LAYER, TOP_K
from trimaran_kernels.hop import HopArena, HopCall, HopLine
line = HopLine(HopArena(sys.argv[1]))
x, ids = np.zeros((6, HIDDEN), np.float32), np.zeros((6, TOP_K), np.int32)
weights = np.ones((6, TOP_K), np.float32)
print("calls", flush=True)
while (call := HopCall.start([line], LAYER, x, ids, weights)) is not None:
    assert call.collect(10, x) == 0
"""


def test_an_arena_outlives_killed_clients(shard: MakeLine, engine: ExpertEngine) -> None:
    one = shard()
    helpers = str(Path(hop_arena.__file__).parent)
    for turn in range(3):
        command = [sys.executable, "-c", CLIENT, str(one.arena.path)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([helpers, *sys.path])}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as victim:
            assert victim.stdout is not None
            assert victim.stdout.readline() == "calls\n"
            time.sleep(0.01 * turn)  # wherever it is then
            victim.kill()
        line = HopLine(one.memory)
        for seed in range(5):
            batch = tokens(6, seed)
            y = np.empty_like(batch[0])
            call = HopCall.start([line], LAYER, *batch)
            assert call is not None
            assert call.collect(5, y) == Status.OK
            np.testing.assert_array_equal(y, computed(engine, batch))


def test_bad_ids_are_a_status(shard: MakeLine) -> None:
    one = shard()
    x, ids, weights = tokens(2)
    ids[1, 1] = EXPERTS
    assert started([one], (x, ids, weights)).collect(5, np.empty_like(x)) == Status.BAD_EXPERT_ID
    assert one.line.n_free == 2


def test_what_does_not_fit_is_refused_before_it_crosses(shard: MakeLine) -> None:
    one = shard(serves=False)
    x, ids, weights = tokens(2)
    for bad in (
        (x[:, 1:].copy(), ids, weights),
        (x[:, ::2], ids, weights),
        (x.astype(np.float64), ids, weights),
        (x, ids[:1], weights),
        (x, ids.astype(np.int64), weights),
        (x, ids, weights[:, :1].copy()),
        tokens(7),
    ):
        with pytest.raises(KernelError):
            HopCall.start([one.line], LAYER, *bad)
    with pytest.raises(KernelError, match="at least one"):
        HopCall.start([], LAYER, x, ids, weights)
    with pytest.raises(KernelError, match="different dimensions"):
        HopCall.start([one.line, shard(serves=False, top_k=1).line], LAYER, x, ids, weights)
    assert one.line.n_free == 2
    call = started([one], (x, ids, weights))
    read_only = np.empty_like(x)
    read_only.flags.writeable = False
    for y in (np.empty((1, HIDDEN), np.float32), np.empty_like(ids), read_only, x[:, :3]):
        with pytest.raises(KernelError):
            call.collect(0, y)
