"""A worker that survives whatever is in its arena."""

from __future__ import annotations

import os
import struct
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from hop_arena import (
    EXPERTS,
    LAYER,
    TOP_K,
    fill,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trimaran.arena import Arena
from trimaran.wire import Status
from trimaran_kernels.hop import ArenaWorker, HopArena


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
