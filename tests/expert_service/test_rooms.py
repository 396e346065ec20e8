"""Room in a hugetlbfs, by what its pool of pages tells; the real one where this machine has pages free."""

from __future__ import annotations

import os
import subprocess
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from expert_store import assert_right, backwards, make_task, obtained
from trimaran.errors import PlanError
from trimaran_experts.store import rooms
from trimaran_experts.store import segment as segment_module
from trimaran_experts.store.catalog import purge

PAGE = 2 << 20
StatVfs = namedtuple("StatVfs", ["f_bsize", "f_frsize", "f_blocks", "f_bavail"])


def pool(root: Path, **counts: int) -> Path:
    folder = root / "sys/kernel/mm/hugepages/hugepages-2048kB"
    folder.mkdir(parents=True)
    for name, count in counts.items():
        (folder / name).write_text(f"{count}\n")
    return root


@pytest.mark.parametrize(
    ("counts", "pages"),
    [
        ({}, 0),
        ({"free_hugepages": 5}, 5),
        ({"free_hugepages": 5, "resv_hugepages": 2}, 3),
        ({"free_hugepages": 5, "resv_hugepages": 5, "nr_overcommit_hugepages": 4, "surplus_hugepages": 1}, 3),
        ({"free_hugepages": 1, "nr_overcommit_hugepages": 1, "surplus_hugepages": 3}, 1),
    ],
)
@pytest.mark.parametrize(("blocks", "free_blocks"), [(0, 0), (100, 90), (100, 2)])
def test_room_in_a_hugetlbfs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    counts: dict[str, int],
    pages: int,
    blocks: int,
    free_blocks: int,
) -> None:
    """One that is mounted without a size says that it has no blocks at all."""
    monkeypatch.setattr(rooms, "file_system", lambda _path: "hugetlbfs")
    monkeypatch.setattr(os, "statvfs", lambda _path: StatVfs(PAGE, PAGE, blocks, free_blocks))
    most = min(pages, free_blocks) if blocks else pages
    assert rooms.free_bytes(tmp_path, pool(tmp_path, **counts)) == most * PAGE


def test_a_full_one_says_what_to_raise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "file_system", lambda _path: "hugetlbfs")
    monkeypatch.setattr(rooms, "free_bytes", lambda _path: PAGE)
    with pytest.raises(PlanError, match=r"room for 2.00 MiB.*raise vm.nr_hugepages"):
        rooms.check_room("tmpfs", tmp_path, 3 * PAGE, 1 << 40)


def test_pages_that_somebody_took_meanwhile_are_a_lack_of_room(
    q8: Path, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = segment_module.map_file

    def refuse(fd: int, size: int, *, writable: bool, border: int) -> np.ndarray:
        if writable:
            raise OSError(12, "Cannot allocate memory")
        return real(fd, size, writable=writable, border=border)

    monkeypatch.setattr(segment_module, "map_file", refuse)
    with pytest.raises(PlanError, match="cannot be mapped: Cannot allocate memory"):
        obtained(make_task(q8, backwards(), store="tmpfs", store_dir=str(directory)))
    assert list(directory.iterdir()) == []


@pytest.fixture
def huge_directory(tmp_path: Path) -> Iterator[Path]:
    """On a hugetlbfs of this test's own."""
    if rooms.huge_pages_free(PAGE) < 8:
        pytest.skip("no huge pages are free")
    mount = tmp_path / "huge"
    mount.mkdir()
    if subprocess.run(
        ["mount", "-t", "hugetlbfs", "none", mount], check=False, capture_output=True
    ).returncode:
        pytest.skip("this user may not mount")
    try:
        yield mount / "kept"
    finally:
        subprocess.run(["umount", "--lazy", mount], check=True)


def test_weights_in_a_hugetlbfs(q8: Path, huge_directory: Path) -> None:
    task = make_task(q8, backwards(), store="tmpfs", store_dir=str(huge_directory))
    before = rooms.huge_pages_free(PAGE)
    first = obtained(task)
    assert_right(first, task)
    assert rooms.huge_pages_free(PAGE) < before
    second = obtained(task)
    assert_right(second, task)
    del first, second
    removed, kept = purge(huge_directory)
    assert (len(removed), kept) == (1, [])
    assert rooms.huge_pages_free(PAGE) == before
