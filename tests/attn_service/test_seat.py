"""Steps are computed on the CPU that the kernels' threads leave to their caller."""

from __future__ import annotations

import os

import pytest
from trimaran_attn.seat import SeatedModel, seated


def test_the_thread_stays_on_its_cpu_meanwhile() -> None:
    allowed = os.sched_getaffinity(0)
    cpu = max(allowed)
    with seated(cpu):
        assert os.sched_getaffinity(0) == {cpu}
    assert os.sched_getaffinity(0) == allowed


def test_a_step_that_fails_leaves_the_seat() -> None:
    allowed = os.sched_getaffinity(0)
    seen = []

    class Broken:
        def forward(self, batch, cache):
            seen.append((os.sched_getaffinity(0), batch, cache))
            raise ArithmeticError

    cpu = min(allowed)
    with pytest.raises(ArithmeticError):
        SeatedModel(Broken(), cpu).forward("batch", "cache")
    assert seen == [({cpu}, "batch", "cache")]
    assert os.sched_getaffinity(0) == allowed


def test_a_cpu_that_was_taken_away_is_done_without() -> None:
    allowed = os.sched_getaffinity(0)
    with seated(max(allowed) + 4096):
        assert os.sched_getaffinity(0) == allowed
    assert os.sched_getaffinity(0) == allowed
