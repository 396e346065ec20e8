"""Mappings of files: aligned, locked while they live, in huge pages where the kernel can."""

from __future__ import annotations

import fcntl
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from trimaran.mapped_file import map_file, page_border
from trimaran_experts.store.memory import huge_page_bytes, populate_for_writing

HUGE = 2 << 20
COLLAPSES = (6, 1)
"""The first Linux that makes huge pages of small ones on request."""


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    """Five huge pages' worth of a hole on a tmpfs."""
    path = Path("/dev/shm") / f"trimaran-test-{os.getpid()}-{tmp_path.name}"
    path.touch(0o600)
    os.truncate(path, 5 * HUGE)
    yield path
    path.unlink()


def test_a_mapping_is_aligned_and_the_files(file: Path) -> None:
    fd = os.open(file, os.O_RDWR)
    assert page_border(fd) == HUGE
    written = map_file(fd, 5 * HUGE, writable=True, border=HUGE)
    read = map_file(fd, 5 * HUGE, writable=False, border=HUGE)
    os.close(fd)
    assert written.ctypes.data % HUGE == read.ctypes.data % HUGE == 0
    assert written.size == read.size == 5 * HUGE
    written[[0, 12345, 5 * HUGE - 1]] = 1, 2, 3
    assert read[[0, 12345, 5 * HUGE - 1]].tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match="read-only"):
        read[0] = 1


def test_a_part_keeps_the_mapping_and_the_mapping_keeps_the_lock(file: Path) -> None:
    fd = os.open(file, os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_SH)
    part = map_file(fd, 5 * HUGE, writable=False, border=HUGE)[HUGE : HUGE + 10]
    os.close(fd)
    with file.open("rb") as other:
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert not part.any()
        del part
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_what_cannot_be_mapped_is_an_error(file: Path) -> None:
    fd = os.open(file, os.O_RDONLY)
    with pytest.raises(PermissionError):
        map_file(fd, HUGE, writable=True, border=HUGE)
    os.close(fd)


def test_populating_changes_no_byte_and_makes_huge_pages(file: Path) -> None:
    fd = os.open(file, os.O_RDWR)
    memory = map_file(fd, 5 * HUGE, writable=True, border=HUGE)
    data = memory[64 : 4 * HUGE + 100]
    values = np.random.default_rng(0).integers(0, 256, data.size, np.uint8)
    data[:HUGE] = values[:HUGE]
    for first in range(0, data.size, 3 << 20):  # pieces that share huge pages
        end = min(first + (3 << 20), data.size)
        populate_for_writing(data, first, end, fd, 64)
        data[first:end] = values[first:end]
    os.close(fd)
    assert np.array_equal(data, values)
    if can_collapse():
        assert huge_page_bytes(memory) == 5 * HUGE


def can_collapse() -> bool:
    """Whether this kernel makes huge pages of a tmpfs's small ones."""
    version = re.match(r"(\d+)\.(\d+)", platform.release())
    has_huge = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled").exists()
    return has_huge and version is not None and tuple(map(int, version.groups())) >= COLLAPSES
