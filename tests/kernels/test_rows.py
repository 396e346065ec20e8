"""A row of every kernel's result has the same bits alone and among any others, in any place of a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray
from trimaran.wire import Status
from trimaran_kernels import (
    ExpertEngine,
    Gate,
    GateRule,
    Linear,
    ThreadPool,
    pack,
    packed_bytes,
    rms_norm,
)

Rows = NDArray[np.float32]
MOST = 65
COUNTS = (2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, MOST)


@dataclass(frozen=True)
class Matrix:
    """A matrix as a kernel takes it, of `rows` × `columns`."""

    kind: int
    raw: NDArray[np.uint8]
    rows: int
    columns: int

    def packed(self, pool: ThreadPool) -> NDArray[np.uint8] | None:
        size = packed_bytes(self.kind, self.rows, self.columns)
        if size is None:
            return None
        out = np.zeros(size, np.uint8)
        pack(pool, self.kind, self.raw, self.rows, self.columns, out)
        return out

    def forms(self, pool: ThreadPool) -> Iterator[tuple[int, NDArray[np.uint8], bool]]:
        """The file's own rows, and packed ones if the type has them."""
        yield self.kind, self.raw, False
        packed = self.packed(pool)
        if packed is not None:
            yield self.kind, packed, True


def assert_rows_are_independent(compute: Callable[[slice], Rows], width: int = MOST) -> None:
    """`compute` takes some rows of its input and gives their results."""
    alone = np.concatenate([compute(slice(i, i + 1)) for i in range(width)])
    for count in COUNTS:
        first = (width - count) // 2
        rows = slice(first, first + count)
        np.testing.assert_array_equal(compute(rows), alone[rows], err_msg=f"{count} rows")


def inputs(rng: np.random.Generator, columns: int) -> Rows:
    return rng.standard_normal((MOST, columns), dtype=np.float32)


def test_of_matrices_of_every_type(weight_type, pool, rng) -> None:
    rows, columns = 72, 512
    matrix = Matrix(weight_type.id, weight_type.random(rng, rows, columns), rows, columns)
    x = inputs(rng, columns)
    for kind, data, packed in matrix.forms(pool):
        linear = Linear(pool, kind, data, rows, columns, packed=packed)

        def compute(part: slice, linear: Linear = linear) -> Rows:
            y = np.empty((part.stop - part.start, rows), np.float32)
            linear(x[part], y)
            return y

        assert_rows_are_independent(compute)


def test_of_experts_of_every_type(weight_type, pool, rng, monkeypatch) -> None:
    """Without matrix tiles, which round otherwise and take over from some number of tokens on."""
    monkeypatch.setenv("TRIMARAN_ISA", "avx512_vnni")
    hidden, width, count, top_k = 256, 512, 3, 2
    shapes = {"gate": (width, hidden), "up": (width, hidden), "down": (hidden, width)}
    matrices = [
        [Matrix(weight_type.id, weight_type.random(rng, *shape), *shape) for _ in range(count)]
        for shape in shapes.values()
    ]
    x = inputs(rng, hidden) * np.float32(0.05)
    ids = np.stack([rng.permutation(count)[:top_k] for _ in x]).astype(np.int32)
    weights = rng.random(ids.shape, dtype=np.float32)
    n_forms = len(list(matrices[0][0].forms(pool)))
    for form in range(n_forms):
        layer = []
        for each in matrices:
            parts = [list(matrix.forms(pool))[form] for matrix in each]
            layer.append((parts[0][0], np.concatenate([part[1] for part in parts]), parts[0][2]))
        engine = ExpertEngine(pool, hidden, width, count, top_k)
        engine.add_layer(0, *layer, 0, count)

        def compute(part: slice, engine: ExpertEngine = engine) -> Rows:
            y = np.empty((part.stop - part.start, hidden), np.float32)
            assert engine.forward(0, x[part], ids[part], weights[part], y) == Status.OK
            return y

        assert_rows_are_independent(compute)


def test_of_norms(pool, rng) -> None:
    x, weight = inputs(rng, 515), rng.random(515, dtype=np.float32)

    def compute(part: slice) -> Rows:
        y = np.empty_like(x[part])
        rms_norm(pool, x[part], weight, 1e-6, y)
        return y

    assert_rows_are_independent(compute)


@pytest.mark.parametrize("softmax", [True, False])
def test_of_gates(pool, rng, softmax: bool) -> None:
    n_experts, hidden, top_k = 24, 515, 4
    rule = GateRule(
        n_experts=n_experts,
        top_k=top_k,
        softmax=softmax,
        n_groups=1 if softmax else 4,
        n_groups_used=1 if softmax else 2,
        group_best=1 if softmax else 2,
        normalise=not softmax,
        weights_scale=2.5,
    )
    bias = None if softmax else rng.random(n_experts, dtype=np.float32)
    gate = Gate(pool, rule, rng.standard_normal((n_experts, hidden), dtype=np.float32), bias)
    x = inputs(rng, hidden)

    def compute(part: slice) -> Rows:
        count = part.stop - part.start
        ids, weights = np.empty((count, top_k), np.int32), np.empty((count, top_k), np.float32)
        gate(x[part], ids, weights)
        return np.concatenate([ids.astype(np.float32), weights], 1)

    assert_rows_are_independent(compute)
