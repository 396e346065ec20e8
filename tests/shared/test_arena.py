"""Arenas are private, laid out as documented, gone at exit, and cleaned up after a crash."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trimaran.arena import (
    Arena,
    ArenaDims,
    ArenaLayout,
    arena_directory,
    is_tmpfs,
    remove_leftovers,
)
from trimaran.errors import PeerError

DIMS = ArenaDims(hidden_size=48, top_k=3, max_tokens=5, n_slots=2, dtype="f32")


@given(
    hidden=st.integers(1, 9000),
    top_k=st.integers(1, 16),
    tokens=st.integers(1, 700),
    slots=st.integers(1, 8),
    dtype=st.sampled_from(["f32", "bf16"]),
)
def test_the_layout_is_aligned_and_nothing_overlaps(
    hidden: int, top_k: int, tokens: int, slots: int, dtype: str
) -> None:
    dims = ArenaDims(hidden, top_k, tokens, slots, dtype)  # type: ignore[arg-type]
    layout = ArenaLayout.of(dims)
    vectors, routes = tokens * hidden * dims.element.itemsize, tokens * top_k * 4
    ends = [layout.x + vectors, layout.ids + routes, layout.weights + routes, layout.y + vectors]
    starts = [layout.ids, layout.weights, layout.y, layout.slot_stride]
    assert layout.x == 192
    assert all(end <= start for end, start in zip(ends, starts, strict=True))
    assert all(start % 64 == 0 for start in starts)
    assert layout.slot_stride % 4096 == 0
    assert layout.file_bytes == 4096 + slots * layout.slot_stride


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_the_file_holds_what_the_views_hold(tmp_path: Path, dtype: str) -> None:
    dims = ArenaDims(48, 3, 5, 2, dtype)  # type: ignore[arg-type]
    with Arena(dims, tmp_path) as arena:
        views = arena.slot(1)
        views.x[:] = np.arange(5 * 48).reshape(5, 48)
        views.ids[:] = 7
        views.weights[:] = 0.5
        views.y[:] = 1
        raw = arena.path.read_bytes()
        slot = 4096 + arena.layout.slot_stride
        x = np.frombuffer(raw, dims.element, 5 * 48, slot + arena.layout.x)
        assert (x == np.arange(5 * 48)).all()
        assert (np.frombuffer(raw, np.int32, 15, slot + arena.layout.ids) == 7).all()
        assert (np.frombuffer(raw, np.float32, 15, slot + arena.layout.weights) == 0.5).all()
        assert (np.frombuffer(raw, dims.element, 5 * 48, slot + arena.layout.y) == 1).all()
        assert not np.frombuffer(raw, np.uint8, arena.layout.slot_stride, 4096).any()


def test_the_file_is_private_and_gone_after_close(tmp_path: Path) -> None:
    with Arena(DIMS, tmp_path) as arena:
        assert stat.S_IMODE(arena.path.stat().st_mode) == 0o600
        assert arena.path.stat().st_size == arena.layout.file_bytes
        view = arena.slot(0).y
    assert list(tmp_path.iterdir()) == []
    view[:] = 3  # still mapped
    arena.close()


def test_no_room_is_one_clear_error_and_leaves_no_file() -> None:
    huge = ArenaDims(hidden_size=1 << 20, top_k=8, max_tokens=1 << 17, n_slots=64, dtype="f32")
    directory = arena_directory("/")
    before = set(directory.iterdir())
    with pytest.raises(PeerError, match=r"cannot reserve \d+ bytes.*max_step_tokens"):
        Arena(huge, directory)
    assert set(directory.iterdir()) == before


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PeerError, match="cannot be created"):
        Arena(DIMS, tmp_path / "nowhere")


def test_tmpfs_is_found(tmp_path: Path) -> None:
    assert is_tmpfs("/dev/shm")
    assert not is_tmpfs("/proc")
    assert not is_tmpfs("/dev/shm/not-there")
    assert arena_directory("/proc") == Path("/dev/shm")
    assert arena_directory("/dev/shm") == Path("/dev/shm")


CREATE_AND_HANG = """
import sys, time
from trimaran.arena import Arena, ArenaDims
arena = Arena(ArenaDims(48, 3, 5, 2, "f32"), sys.argv[1])
print(arena.path, flush=True)
time.sleep(60)
"""


def test_what_a_killed_process_left_is_removed_and_the_living_stay(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CREATE_AND_HANG, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        left = Path(process.stdout.readline().strip())
        with Arena(DIMS, tmp_path) as mine:
            assert remove_leftovers(tmp_path) == []
            process.kill()
            process.wait()
            assert remove_leftovers(tmp_path) == [left]
            assert list(tmp_path.iterdir()) == [mine.path]


def test_only_arenas_are_removed(tmp_path: Path) -> None:
    other = tmp_path / "psm_something"
    other.touch()
    target = tmp_path / "target"
    target.touch()
    (tmp_path / "trimaran-arena-1-link").symlink_to(target)
    (tmp_path / "trimaran-arena-1-dead").touch()
    assert remove_leftovers(tmp_path) == [tmp_path / "trimaran-arena-1-dead"]
    assert other.exists()
    assert target.exists()
