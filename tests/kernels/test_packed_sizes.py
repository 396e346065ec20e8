"""The plan's table of packed sizes is the kernels'."""

from __future__ import annotations

from itertools import product
from math import prod

import pytest
from trimaran.cpu_weights import packed_bytes
from trimaran.gguf import GGMLType, TensorInfo
from trimaran_kernels import packed_bytes as native_bytes


@pytest.mark.parametrize("kind", list(GGMLType), ids=lambda kind: kind.name)
def test_matrices(kind: GGMLType) -> None:
    columns = [width for width in (32, 64, 96, 256, 1408, 7168) if width % kind.block_size == 0]
    assert columns
    for shape in product((1, 16, 100, 2048), columns):
        file_bytes = shape[0] * kind.row_bytes(shape[1])
        native = native_bytes(int(kind), *shape)
        info = TensorInfo("matrix", kind, shape, 0, 0, file_bytes)
        assert packed_bytes(info) == (file_bytes if native is None else native), shape


def test_experts_are_packed_one_by_one() -> None:
    shape = (6, 100, 512)
    info = TensorInfo("experts", GGMLType.Q4_K, shape, 0, 0, prod(shape) * 144 // 256)
    one = native_bytes(int(GGMLType.Q4_K), *shape[1:])
    assert one is not None
    assert packed_bytes(info) == 6 * one


def test_vectors_are_not_packed() -> None:
    assert packed_bytes(TensorInfo("norm", GGMLType.F32, (512,), 0, 0, 2048)) == 2048
