"""The arena: one layout for both sides, and files that are none are refused."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from hop_arena import (
    HIDDEN,
    TOP_K,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trimaran.arena import Arena, ArenaDims, ArenaLayout, ElementType
from trimaran.errors import KernelError
from trimaran_kernels import ExpertEngine
from trimaran_kernels.hop import ArenaWorker, CallGate, HopArena, arena_layout


@given(
    hidden=st.integers(1, 9000),
    top_k=st.integers(1, 16),
    tokens=st.integers(1, 700),
    slots=st.integers(1, 8),
    dtype=st.sampled_from(["f32", "bf16"]),
)
def test_both_sides_compute_the_same_layout(
    hidden: int, top_k: int, tokens: int, slots: int, dtype: ElementType
) -> None:
    layout = ArenaLayout.of(ArenaDims(hidden, top_k, tokens, slots, dtype))
    assert arena_layout(hidden, top_k, tokens, slots, dtype) == (
        layout.x,
        layout.ids,
        layout.weights,
        layout.y,
        layout.slot_stride,
        layout.file_bytes,
    )


def test_an_arena_says_its_dimensions(client: HopArena) -> None:
    assert client.dims == (HIDDEN, TOP_K, 6, 3, "f32")


def corrupt(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.mark.parametrize(
    ("offset", "data", "reason"),
    [
        (0, b"NOTARENA", "not an arena"),
        (8, struct.pack("<I", 3), "version 3"),
        (12, struct.pack("<I", 9), "element type"),
        (16, struct.pack("<I", 0), "hidden size"),
        (16, struct.pack("<I", 2**32 - 1), "hidden size"),
        (20, struct.pack("<I", 0), "top_k"),
        (24, struct.pack("<I", 2**31), "token count"),
        (24, struct.pack("<I", 900), "contradict"),
        (28, struct.pack("<I", 0), "slot count"),
        (28, struct.pack("<I", 4), "contradict"),
        (32, struct.pack("<Q", 0), "contradict"),
        (40, struct.pack("<Q", 2**63), "contradict"),
    ],
)
def test_bad_headers_are_refused(arena: Arena, offset: int, data: bytes, reason: str) -> None:
    corrupt(arena.path, offset, data)
    with pytest.raises(KernelError, match=reason):
        HopArena(str(arena.path))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(header=st.binary(min_size=40, max_size=40))
def test_no_header_kills(arena: Arena, header: bytes) -> None:
    corrupt(arena.path, 8, header)
    with pytest.raises(KernelError):
        HopArena(str(arena.path))


def test_bad_files_are_refused(tmp_path: Path, arena: Arena) -> None:
    with pytest.raises(KernelError, match="No such file"):
        HopArena(str(tmp_path / "missing"))
    with pytest.raises(KernelError, match="Is a directory"):
        HopArena(str(tmp_path))
    (tmp_path / "short").write_bytes(b"TRIARENA")
    (tmp_path / "short").chmod(0o600)
    with pytest.raises(KernelError, match="too short"):
        HopArena(str(tmp_path / "short"))
    (tmp_path / "link").symlink_to(arena.path)
    with pytest.raises(KernelError):
        HopArena(str(tmp_path / "link"))
    os.mkfifo(tmp_path / "fifo", 0o600)
    with pytest.raises(KernelError, match="not a regular file"):
        HopArena(str(tmp_path / "fifo"))
    os.truncate(arena.path, arena.layout.file_bytes - 4096)
    with pytest.raises(KernelError, match="contradict"):
        HopArena(str(arena.path))
    arena.path.chmod(0o644)
    with pytest.raises(KernelError, match="0600"):
        HopArena(str(arena.path))


def test_an_arena_of_another_model_is_refused(tmp_path: Path, engine: ExpertEngine) -> None:
    with (
        Arena(ArenaDims(HIDDEN + 1, TOP_K, 6, 1, "f32"), tmp_path) as arena,
        pytest.raises(KernelError, match="not the model's"),
    ):
        ArenaWorker(HopArena(str(arena.path)), CallGate(engine), -1)
