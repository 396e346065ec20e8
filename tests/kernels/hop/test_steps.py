"""Requests without a bell, as a GPU makes them."""

from __future__ import annotations

import time

from hop_arena import (
    Stepper,
    cpu_seconds,
    fill,
)
from trimaran.arena import Arena
from trimaran.wire import Status
from trimaran_kernels.hop import ArenaWorker, HopArena


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
