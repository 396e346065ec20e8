"""Seats on made-up machines."""

from __future__ import annotations

import itertools
import mmap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trimaran.errors import ConfigError
from trimaran.machine import NumaNode
from trimaran_experts.numa import Seat, seat, split_experts
from trimaran_experts.store.memory import place_on_nodes

GB = 1 << 30
TWO = (NumaNode(0, (0, 1, 2, 3), 256 * GB), NumaNode(1, (4, 5, 6, 7), 256 * GB))
ONE = TWO[:1]
ALL = range(8)
WITH_HBM = (*TWO, NumaNode(2, (), 64 * GB))  # memory without CPUs
BARE = (TWO[0], NumaNode(1, (4, 5, 6, 7), 0))  # CPUs without memory


@pytest.mark.parametrize(
    ("nodes", "allowed", "wanted", "expected"),
    [
        (ONE, (0, 1, 2, 3), None, Seat((0, 1, 2, 3), (), "default")),
        (ONE, (1, 3), 0, Seat((1, 3), (), "default")),
        ((), (0, 1), None, Seat((0, 1), (), "default")),
        (TWO, ALL, None, Seat(tuple(ALL), (0, 1), "interleave")),
        (TWO, (0, 2), None, Seat((0, 2), (), "default")),
        (TWO, ALL, 0, Seat((0, 1, 2, 3), (0,), "bind")),
        (TWO, ALL, 1, Seat((4, 5, 6, 7), (1,), "bind")),
        (TWO, (1, 5), 1, Seat((5,), (1,), "bind")),
        (WITH_HBM, ALL, None, Seat(tuple(ALL), (0, 1), "interleave")),
        (BARE, ALL, None, Seat(tuple(ALL), (), "default")),
        (BARE, ALL, 1, Seat((4, 5, 6, 7), (0,), "interleave")),
    ],
)
def test_seats(nodes, allowed, wanted: int | None, expected: Seat) -> None:
    assert seat(nodes, allowed, wanted) == expected


@pytest.mark.parametrize(
    ("nodes", "allowed", "wanted", "complaint"),
    [
        (TWO, ALL, 2, "nodes are 0, 1"),
        ((), (0,), 0, "nodes are none"),
        (TWO, (0, 1), 1, "may use none of its CPUs"),
        (WITH_HBM, ALL, 2, "may use none of its CPUs"),
    ],
)
def test_seats_that_are_not_there(nodes, allowed, wanted: int, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        seat(nodes, allowed, wanted)


def test_experts_are_split_by_cpus() -> None:
    assert split_experts(TWO, ALL, 256) == {0: (0, 128), 1: (128, 256)}
    assert split_experts(TWO, (0, 1, 2, 4), 256) == {0: (0, 192), 1: (192, 256)}
    assert split_experts(WITH_HBM, ALL, 16) == {0: (0, 8), 1: (8, 16)}
    assert split_experts(BARE, ALL, 16) == {0: (0, 16)}
    assert split_experts(TWO, ALL, 1) == {1: (0, 1)}


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8), st.integers(1, 300))
def test_every_expert_is_on_exactly_one_node(counts: list[int], n_experts: int) -> None:
    numbers = iter(range(sum(counts)))
    nodes = [NumaNode(i, tuple(next(numbers) for _ in range(n)), GB) for i, n in enumerate(counts)]
    ranges = list(split_experts(nodes, range(sum(counts)), n_experts).values())
    if not any(counts):
        assert ranges == []
        return
    assert ranges[0][0] == 0
    assert ranges[-1][1] == n_experts
    assert all(one[1] == two[0] for one, two in itertools.pairwise(ranges))


def test_the_kernel_takes_the_policy_or_it_is_known() -> None:
    memory = np.frombuffer(mmap.mmap(-1, 1 << 20), np.uint8)
    assert place_on_nodes(memory, (0,), "bind") == Path("/sys/devices/system/node/node0").is_dir()
    assert not place_on_nodes(memory, (900,), "bind")
    assert not place_on_nodes(memory, (), "default")
