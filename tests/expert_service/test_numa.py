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
from trimaran.machine import NumaNode, read_machine
from trimaran_experts.numa import Seat, room_on, seat, split_experts
from trimaran_experts.store.memory import place_on_nodes, small_page

GB = 1 << 30
TWO = (NumaNode(0, (0, 1, 2, 3), 256 * GB), NumaNode(1, (4, 5, 6, 7), 256 * GB))
ONE = TWO[:1]
ALL = range(8)
WITH_HBM = (*TWO, NumaNode(2, (), 64 * GB))  # memory without CPUs
BARE = (TWO[0], NumaNode(1, (4, 5, 6, 7), 0))  # CPUs without memory
WITH_CXL = (*BARE, NumaNode(2, (), 512 * GB))
ONLY_CXL = (NumaNode(0, (0, 1, 2, 3), 0), NumaNode(1, (4, 5, 6, 7), 0), WITH_CXL[2])
GAPS = (NumaNode(0, (0, 1), GB), NumaNode(8, (64, 65), GB), NumaNode(252, (), GB))  # POWER9
ALL_OF_GAPS = (0, 1, 64, 65)


@pytest.mark.parametrize(
    ("nodes", "allowed", "wanted", "expected"),
    [
        (ONE, (0, 1, 2, 3), None, Seat((0, 1, 2, 3), (), "default")),
        (ONE, (1, 3), 0, Seat((1, 3), (), "default")),
        ((), (0, 1), None, Seat((0, 1), (), "default")),
        (TWO, ALL, None, Seat(tuple(ALL), (0, 1), "interleave")),
        (TWO, (0, 2), None, Seat((0, 2), (0,), "prefer")),
        (GAPS, (64, 65), None, Seat((64, 65), (8,), "prefer")),
        (GAPS, ALL_OF_GAPS, None, Seat(ALL_OF_GAPS, (0, 8), "interleave")),
        (GAPS, ALL_OF_GAPS, 8, Seat((64, 65), (8,), "bind")),
        (WITH_CXL, ALL, 1, Seat((4, 5, 6, 7), (0,), "interleave")),
        (ONLY_CXL, ALL, 0, Seat((0, 1, 2, 3), (2,), "interleave")),
        (ONLY_CXL, ALL, None, Seat(tuple(ALL), (), "default")),
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
        (WITH_HBM, ALL, 2, "experts.node is 2, which has memory but no CPUs"),
        (GAPS, ALL_OF_GAPS, 1, "nodes are 0, 8, 252"),
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
    assert split_experts(GAPS, ALL_OF_GAPS, 16) == {0: (0, 8), 8: (8, 16)}
    assert split_experts(ONLY_CXL, ALL, 16) == {}
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
    assert place_on_nodes(memory, (0,), "prefer") == Path("/sys/devices/system/node/node0").is_dir()
    assert not place_on_nodes(memory, (900,), "bind")
    assert not place_on_nodes(memory, (), "default")


def sysfs(
    root: Path, nodes: dict[int, tuple[str, int, int]], mems: str | None = None
) -> tuple[NumaNode, ...]:
    """The nodes of a machine as Linux shows it: by number cpulist, GiB of memory, GiB of it free."""
    for number, (cpulist, total, free) in nodes.items():
        folder = root / f"sys/devices/system/node/node{number}"
        folder.mkdir(parents=True)
        (folder / "cpulist").write_text(f"{cpulist}\n")
        fields = {"MemTotal": total << 20, "MemFree": free << 20, "Active(file)": 1024, "SReclaimable": 512}
        lines = [f"Node {number} {name + ':':16}{kilobytes:8} kB" for name, kilobytes in fields.items()]
        (folder / "meminfo").write_text("\n".join(lines) + "\n")
    for other in ("node/online", "node/has_cpu", "cpu/online"):  # names that are no node's
        path = root / "sys/devices/system" / other
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("0-1\n")
    if mems is not None:
        (root / "proc/self").mkdir(parents=True)
        (root / "proc/self/status").write_text(f"Name:\tpython\nMems_allowed_list:\t{mems}\n")
    return read_machine(root, with_gpus=False).nodes


def test_offline_cpus_and_nodes_with_gaps(tmp_path: Path) -> None:
    """A node lists the CPUs that are online; one may have lost all of them, or its memory."""
    nodes = sysfs(tmp_path, {8: ("64-66,70", 4, 2), 0: ("0-1", 4, 1), 252: ("", 16, 16), 9: ("72", 0, 0)})
    assert [(node.number, node.cpus) for node in nodes] == [
        (0, (0, 1)),
        (8, (64, 65, 66, 70)),
        (9, (72,)),
        (252, ()),
    ]
    assert [node.memory // GB for node in nodes] == [4, 4, 0, 16]
    assert nodes[0].available == GB + 1536 * 1024
    assert seat(nodes, (0, 1, 64, 72), None) == Seat((0, 1, 64, 72), (0, 8), "interleave")
    assert seat(nodes, (0, 1, 64, 72), 9) == Seat((72,), (0, 8), "interleave")


@pytest.mark.parametrize(
    ("mems", "wanted", "expected"),
    [
        (None, None, Seat(tuple(ALL), (0, 1), "interleave")),
        ("0-1", None, Seat(tuple(ALL), (0, 1), "interleave")),
        ("0", None, Seat(tuple(ALL), (), "default")),  # no other memory: nothing to ask for
        ("1", 1, Seat((4, 5, 6, 7), (1,), "bind")),
        ("0", 1, Seat((4, 5, 6, 7), (0,), "interleave")),
        ("0,2", 1, Seat((4, 5, 6, 7), (0,), "interleave")),
    ],
)
def test_a_cpuset_that_leaves_out_memory(
    tmp_path: Path, mems: str | None, wanted: int | None, expected: Seat
) -> None:
    nodes = sysfs(tmp_path, {0: ("0-3", 4, 3), 1: ("4-7", 4, 3), 2: ("", 8, 8)}, mems)
    assert seat(nodes, ALL, wanted) == expected


def test_a_cpuset_that_leaves_a_node_without_cpus(tmp_path: Path) -> None:
    nodes = sysfs(tmp_path, {0: ("0-3", 4, 3), 1: ("4-7", 4, 3)}, "0-1")
    assert seat(nodes, (1, 2), None) == Seat((1, 2), (0,), "prefer")
    assert split_experts(nodes, (1, 2), 16) == {0: (0, 16)}
    with pytest.raises(ConfigError, match="may use none of its CPUs"):
        seat(nodes, (1, 2), 1)


def test_room_on_the_nodes_that_weights_are_bound_to(tmp_path: Path) -> None:
    nodes = sysfs(tmp_path, {0: ("0-3", 4, 3), 1: ("4-7", 4, 1)})
    room = GB + 1536 * 1024
    assert room_on(seat(nodes, ALL, 1), nodes, 4 * GB) == room
    assert room_on(seat(nodes, ALL, 1), nodes, GB // 2) == GB // 2
    assert room_on(seat(nodes, ALL, None), nodes, 4 * GB) == 4 * GB
    assert room_on(seat(TWO, ALL, 1), TWO, 4 * GB) == 4 * GB  # a system that does not say


@pytest.mark.parametrize("n_nodes", [2, 3, 4, 6, 8])
def test_huge_pages_are_made_from_small_ones_of_every_node(n_nodes: int) -> None:
    """Where small pages are given to nodes in turn, the first ones of huge pages would all be one node's."""
    numbers = [512 * page + small_page(page) for page in range(10_000, 20_000)]
    assert {small_page(page) for page in range(20_000)} == set(range(512))
    counts = np.bincount(np.array(numbers) % n_nodes, minlength=n_nodes)
    assert counts.min() > 0.9 * len(numbers) / n_nodes
