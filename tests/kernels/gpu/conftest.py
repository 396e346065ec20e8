from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from gpu_walk import BENCHMARKS
from interpreted import DEVICE, ON_GPU
from torch import Tensor
from trimaran.gguf import GGMLType
from trimaran_kernels.gpu import gemv, gemv_fixed
from trimaran_kernels.gpu.layouts import LAYOUTS
from trimaran_kernels.gpu.matrix import QuantMatrix

NATIVE = tuple(LAYOUTS)
MakeBlocks = Callable[[GGMLType, int, int], Tensor]
MakeMatrix = Callable[[GGMLType, int, int], QuantMatrix]

_SCALES = {GGMLType.Q4_K: (0, 2), GGMLType.Q5_K: (0, 2), GGMLType.Q6_K: (208,)}


@pytest.fixture(autouse=True)
def _quick_interpreter(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Its time goes by programs, not by their size; numpy warns of overflows that a GPU makes infinite."""
    if not ON_GPU:
        monkeypatch.setattr(gemv, "rows_per_program", lambda _: 32)
        monkeypatch.setattr(gemv_fixed, "rows_per_program", lambda n: min(8, 1 << n.bit_length() - 1))
    with np.errstate(all="ignore"):
        yield


@pytest.fixture(params=NATIVE, ids=lambda type_: type_.name)
def native(request: pytest.FixtureRequest) -> GGMLType:
    return request.param


@pytest.fixture
def make_blocks() -> MakeBlocks:
    """Random blocks, all bits but the super-scales', which are around 0.01."""
    rng = np.random.default_rng(7)

    def make(type_: GGMLType, rows: int, columns: int) -> Tensor:
        blocks = rng.integers(0, 256, (rows * columns // type_.block_size, type_.type_size), dtype=np.uint8)
        for offset in _SCALES.get(type_, (0,)):
            scales = rng.uniform(-0.02, 0.02, len(blocks)).astype("<f2")
            blocks[:, offset : offset + 2] = scales[:, None].view(np.uint8)
        return torch.from_numpy(blocks.reshape(-1))

    return make


@pytest.fixture
def make_matrix(make_blocks: MakeBlocks) -> MakeMatrix:
    def make(type_: GGMLType, rows: int, columns: int) -> QuantMatrix:
        return QuantMatrix.from_blocks(type_, make_blocks(type_, rows, columns).to(DEVICE), (rows, columns))

    return make


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Modules of the benchmarks' folder."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.fixture
def walk(load: Callable[[str], ModuleType]) -> tuple[Any, list[Any]]:
    """A bench of `make gpu-check` for the CPU, and what was said to it."""
    said: list[Any] = []
    return load("_gpu_bench").Bench(torch.device("cpu"), said.append), said
