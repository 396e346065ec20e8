"""Weights of a model's experts brought into a store, with a packing that only tests use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from trimaran.config import ExpertsConfig
from trimaran.fingerprint import fingerprint
from trimaran.gguf import GGMLType, GGUFFile
from trimaran.spec import read_spec
from trimaran_experts.loader import find_experts
from trimaran_experts.numa import Seat
from trimaran_experts.placement import place
from trimaran_experts.progress import Report
from trimaran_experts.store.manifest import Identity, Source
from trimaran_experts.weights import Packing, Task, Weights, obtain
from trimaran_kernels import ThreadPool, usable_cpus


def backwards(version: int = 1, on_pack: Callable[[], None] = lambda: None) -> Packing:
    """Packs Q8_0 by reversing it, with 16 bytes of its own in front; leaves other types as they are."""

    def packed_bytes(kind: int, rows: int, columns: int) -> int | None:
        return 16 + rows * GGMLType(kind).row_bytes(columns) if kind == GGMLType.Q8_0 else None

    def pack(_pool: ThreadPool, kind: int, raw: np.ndarray, rows: int, columns: int, out: np.ndarray) -> None:
        assert raw.size == rows * GGMLType(kind).row_bytes(columns)
        on_pack()
        out[:16] = 255
        out[16:] = raw[::-1]

    return Packing(version, packed_bytes, pack)


def make_task(
    path: Path, packing: Packing, *, ram: int = 1 << 40, fingerprint_text: str = "", **options: Any
) -> Task:
    """Everything of the model at `path`; `options` are those of `experts`."""
    config = ExpertsConfig(**options)
    file = GGUFFile.open(path)
    spec = read_spec(file)
    placement = place(config, spec.moe.n_experts, spec.moe.intermediate_size, usable_cpus(1))
    layers, state = find_experts(file, spec, placement), path.stat()
    identity = Identity(
        fingerprint=fingerprint_text or fingerprint(file, spec),
        packing=packing.version_of(layers),
        shard=placement.shard,
        experts=placement.experts,
        columns=placement.columns,
        sources=(Source(state.st_size, state.st_mtime_ns),),
        model=spec.name,
    )
    pool, here = ThreadPool(placement.cpus), Seat(placement.cpus, (0,), "bind")
    return Task(config, layers, identity, packing, pool, here, ram, ignore, lambda: False)


def ignore(_report: Report) -> None:
    """Hears nothing."""


class Counter:
    """Counts what was packed."""

    def __init__(self) -> None:
        self.packed = 0

    def __call__(self) -> None:
        self.packed += 1


def obtained(task: Task) -> Weights:
    weights = obtain(task)
    assert weights is not None
    return weights


def assert_right(weights: Weights, task: Task) -> None:
    """Every expert's bytes are those of the file, through the packing."""
    for stored_layer, layer in zip(weights.layers, task.layers, strict=True):
        assert stored_layer.layer == layer.layer
        stored = (stored_layer.gate, stored_layer.up, stored_layer.down)
        for one, matrix in zip(stored, layer.matrices, strict=True):
            assert one.type == matrix.type
            experts = one.data.reshape(matrix.n_experts, -1)
            for index in range(matrix.n_experts):
                want = matrix.expert(index)
                got = experts[index][16:][::-1] if one.packed else experts[index]
                np.testing.assert_array_equal(got, want)


def let_go(weights: Weights) -> Path:
    """Where the segment is, once the caller has no other reference to it."""
    assert weights.segment is not None
    return weights.segment.path
