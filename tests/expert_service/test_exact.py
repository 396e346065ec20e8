"""Exact computation from packed weights, where there are matrix tiles: a stand-in has them here.

That tiles multiply packed weights exactly is tested by kernels/tests/emulated_test.cpp.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimaran_experts.engine as engine_module
import trimaran_experts.kernel_packing as packing_module
from trimaran.config import ExpertsConfig, Precision
from trimaran.errors import KernelError
from trimaran.gguf import GGMLType, GGUFFile
from trimaran.spec import read_spec
from trimaran.synth import write_random_model
from trimaran_experts.kernel_packing import PACKING_VERSION, kernel_packing
from trimaran_experts.shard import Shard, open_shard
from trimaran_experts.store.catalog import list_segments
from trimaran_experts.weights import WHOLE_LAYERS
from trimaran_kernels import ExpertEngine, detect_isa
from trimaran_kernels.hop import CallGate

TILES = "amx"


class TileEngine:
    """Takes what an engine with tiles takes; computes packed layers from their rows in the file."""

    rows: dict[int, tuple[tuple[int, np.ndarray], ...]]

    def __init__(self, *given: Any, isa: str, exact: bool) -> None:
        assert exact
        self.real = ExpertEngine(*given, isa=isa, exact=True)
        self.isa = TILES if isa == "auto" else self.real.isa
        self.hidden, self.top_k, self.forward = self.real.hidden, self.real.top_k, self.real.forward
        self.packed: list[bool] = []

    def add_layer(self, layer: int, *given: Any) -> None:
        (packed,) = {matrix[2] for matrix in given[:3]}  # tiles take no layer that is packed in part
        assert packed <= (self.isa == TILES)
        self.packed.append(packed)
        self.real.add_layer(layer, *(self.rows[layer] if packed else given[:3]), *given[3:])


@pytest.fixture
def with_tiles(model, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[TileEngine]]:
    """The CPU seems to have tiles; holds the engines that were made."""
    engines: list[TileEngine] = []

    def make(*given: Any, **named: Any) -> TileEngine:
        engines.append(TileEngine(*given, **named))
        return engines[-1]

    def gate(engine: TileEngine) -> CallGate:
        return CallGate(engine.real)

    TileEngine.rows = {
        layer.layer: tuple((int(matrix.type), matrix.raw) for matrix in layer.matrices)
        for layer in model.layers
    }
    monkeypatch.setattr(packing_module, "detect_isa", lambda cap: TILES if cap == "auto" else detect_isa(cap))
    monkeypatch.setattr(engine_module, "ExpertEngine", make)
    monkeypatch.setattr(engine_module, "CallGate", gate)
    yield engines
    del TileEngine.rows


def shard_of(path: Path, precision: Precision = "exact", **options: str) -> Shard:
    with GGUFFile.open(path) as file:
        return open_shard(ExpertsConfig(**options), precision, file, read_spec(file))


def load(shard: Shard) -> Any:
    engine = shard.load(lambda _report: None, lambda: False)
    assert engine is not None
    return engine


def assert_exact(model, engine: Any) -> None:
    x, ids, weights = model.batch(5)
    y = np.empty_like(x)
    assert engine.gate.run(1, x, ids, weights, y) == 0
    want = model.expected(1, x, ids, weights)
    assert np.linalg.norm(y - want) <= 1e-4 * np.linalg.norm(want)


def test_weights_are_packed_for_tiles(model, directory: Path, with_tiles: list[TileEngine]) -> None:
    kept = {"store": "tmpfs", "store_dir": str(directory)}
    engine = load(shard_of(model.path, **kept))
    assert engine.isa == TILES
    assert [one.packed for one in with_tiles] == [[True, True]]
    assert_exact(model, engine)
    (entry,) = list_segments(directory)
    assert entry.manifest is not None
    assert all(place.packed for place in entry.manifest.places)
    int8 = shard_of(model.path, "int8", **kept)
    assert int8.identity == entry.manifest.identity  # the same bytes: kept once


def test_without_tiles_or_when_they_are_capped_rows_stay(model, with_tiles: list[TileEngine]) -> None:
    engine = load(shard_of(model.path, isa="avx2", store="private"))
    assert engine.isa in {"avx2", "generic"}
    assert [one.packed for one in with_tiles] == [[False, False]]
    assert_exact(model, engine)
    tiled, capped = shard_of(model.path), shard_of(model.path, isa="avx2")
    assert tiled.identity.key != capped.identity.key


def test_tiles_that_fail_give_way_to_the_files_rows(
    model, directory: Path, with_tiles: list[TileEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    check = engine_module.check_engine

    def refuse_tiles(engine: Any, *given: Any) -> float:
        if engine.isa == TILES:
            raise KernelError("deviates")
        return check(engine, *given)

    monkeypatch.setattr(engine_module, "check_engine", refuse_tiles)
    engine = load(shard_of(model.path, store="tmpfs", store_dir=str(directory)))
    assert engine.isa == detect_isa()
    assert [one.packed for one in with_tiles] == [[True, True], [False, False]]
    assert_exact(model, engine)
    (entry,) = list_segments(directory)  # what was packed for the tiles is gone
    assert entry.manifest is not None
    assert not any(place.packed for place in entry.manifest.places)


def test_a_layer_is_packed_whole_or_not_at_all(
    model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def choose(name: str, _shape: tuple[int, ...]) -> GGMLType:
        if "_exps" not in name:
            return GGMLType.F32
        return GGMLType.F16 if "blk.1.ffn_down" in name else GGMLType.Q4_K

    small = replace(model.spec, moe=replace(model.spec.moe, n_experts=4, n_groups=1, n_groups_used=1))
    path = write_random_model(tmp_path / "m.gguf", mix=choose, tokenizer=False, spec=small)
    monkeypatch.setattr(packing_module, "detect_isa", lambda _cap: TILES)
    layers = shard_of(path).layers
    packed = {
        precision: [place.packed for place in kernel_packing(precision).layout(layers).places]
        for precision in ("int8", "exact")
    }
    assert packed == {"int8": [True, True, False] + [True] * 3, "exact": [False] * 3 + [True] * 3}
    assert shard_of(path).identity.packing == PACKING_VERSION + WHOLE_LAYERS
    assert shard_of(path, "int8").identity.packing == PACKING_VERSION
    assert shard_of(path).identity.key != shard_of(path, "int8").identity.key
