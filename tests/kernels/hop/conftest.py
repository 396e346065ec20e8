"""A small engine, an arena, and the worker between them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hop_arena import (
    DIMS,
    EXPERTS,
    HIDDEN,
    INTERMEDIATE,
    LAYER,
    TOP_K,
)
from trimaran.arena import Arena
from trimaran.gguf import GGMLType
from trimaran_kernels import ExpertEngine, ThreadPool, usable_cpus
from trimaran_kernels.hop import ArenaWorker, CallGate, HopArena


@pytest.fixture(scope="module")
def engine() -> ExpertEngine:
    random = np.random.default_rng(1)
    engine = ExpertEngine(ThreadPool(usable_cpus(1)), HIDDEN, INTERMEDIATE, EXPERTS, TOP_K, max_tokens=4)

    def matrix(rows: int, columns: int) -> tuple[int, np.ndarray]:
        values = random.standard_normal((EXPERTS, rows, columns)).astype(np.float32)
        return int(GGMLType.F32), values.view(np.uint8).reshape(-1)

    engine.add_layer(
        LAYER,
        matrix(INTERMEDIATE, HIDDEN),
        matrix(INTERMEDIATE, HIDDEN),
        matrix(HIDDEN, INTERMEDIATE),
        0,
        EXPERTS,
    )
    return engine


@pytest.fixture
def arena(tmp_path: Path) -> Iterator[Arena]:
    with Arena(DIMS, tmp_path) as arena:
        yield arena


@pytest.fixture
def client(arena: Arena) -> HopArena:
    return HopArena(str(arena.path))


@pytest.fixture
def worker(arena: Arena, engine: ExpertEngine) -> Iterator[ArenaWorker]:
    worker = ArenaWorker(HopArena(str(arena.path)), CallGate(engine), -1)
    yield worker
    worker.stop()
