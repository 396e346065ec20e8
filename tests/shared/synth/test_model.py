"""Random models: the same weights in every layout and type, of sane size, and readable by others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import quants
from trimaran.gguf import GGMLType, GGUFFile
from trimaran.gguf.dequant import dequantize
from trimaran.spec import read_spec
from trimaran.synth import SHAPES, ShapeName, random_spec, write_random_model
from trimaran.synth.blocks import random_blocks

ModelMaker = Callable[..., Path]
Floats = np.ndarray[tuple[int, ...], np.dtype[np.float32]]


def weights(file: GGUFFile, name: str) -> Floats:
    info = file.tensor(name)
    return dequantize(info.type, file.raw(name), info.shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_read_as_written(random_model: ModelMaker, shape: ShapeName) -> None:
    spec = read_spec(GGUFFile.open(random_model(shape, mix="Q8_0")))
    wanted = random_spec(shape)
    assert (spec.moe.gate, spec.moe.n_groups, spec.q_lora_rank) == (
        wanted.moe.gate,
        wanted.moe.n_groups,
        wanted.q_lora_rank,
    )


def test_layouts_hold_the_same_model(random_model: ModelMaker) -> None:
    split = GGUFFile.open(random_model("v2-lite", layout="split"))
    whole = GGUFFile.open(random_model("v2-lite", layout="kv_b"))
    spec = read_spec(split)
    for name in set(split.tensors) & set(whole.tensors):
        np.testing.assert_array_equal(split.raw(name), whole.raw(name))
    for layer in range(spec.n_layers):
        both = weights(whole, f"blk.{layer}.attn_kv_b.weight").reshape(spec.n_heads, -1, spec.kv_lora_rank)
        keys = weights(split, f"blk.{layer}.attn_k_b.weight").transpose(0, 2, 1)
        values = weights(split, f"blk.{layer}.attn_v_b.weight")
        np.testing.assert_array_equal(both, np.concatenate([keys, values], axis=1))


def test_seed_decides(random_model: ModelMaker, tmp_path: Path) -> None:
    again = write_random_model(tmp_path / "again.gguf", "v2-lite")
    assert again.read_bytes() == random_model("v2-lite").read_bytes()
    assert again.read_bytes() != random_model("v2-lite", seed=1).read_bytes()


def test_mix_by_function(tmp_path: Path) -> None:
    def choose(name: str, shape: tuple[int, ...]) -> GGMLType:
        return GGMLType.Q5_0 if "ffn_up_exps" in name else GGMLType.F16

    file = GGUFFile.open(write_random_model(tmp_path / "model.gguf", "v2-lite", mix=choose))
    assert {info.type for name, info in file.tensors.items() if "up_exps" in name} == {GGMLType.Q5_0}
    assert {info.type for name, info in file.tensors.items() if "up_exps" not in name} == {GGMLType.F16}


WEIGHT_TYPES = [kind for kind in GGMLType if not kind.is_integer and kind is not GGMLType.F64]


@pytest.mark.parametrize("kind", WEIGHT_TYPES, ids=lambda kind: kind.name)
def test_random_blocks_of_every_type(kind: GGMLType) -> None:
    shape = (3, 64, 512)
    raw = random_blocks(kind, shape, std=0.06, seed=(1, 2))
    values = dequantize(kind, raw, shape)
    assert np.isfinite(values).all()
    assert values.std() == pytest.approx(0.06, rel=0.15)
    rows = raw.reshape(-1, kind.row_bytes(512))
    theirs = quants.dequantize(rows, gguf.GGMLQuantizationType(kind.value)).reshape(shape)
    np.testing.assert_array_equal(values, theirs)


def test_parts(tmp_path: Path) -> None:
    first = write_random_model(tmp_path / "model.gguf", "v2-lite", parts=4)
    assert first.name == "model-00001-of-00004.gguf"
    assert read_spec(GGUFFile.open(first)).n_layers == 3


def test_unknown_mix(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown mix 'Q9'; known: F32"):
        write_random_model(tmp_path / "model.gguf", mix="Q9")


def test_router_scores_are_spread(random_model: ModelMaker) -> None:
    """The two scores next to the border of selection are rarely close: results hardly depend on rounding."""
    file = GGUFFile.open(random_model("v3"))
    router = weights(file, "blk.1.ffn_gate_inp.weight")
    x = np.random.default_rng(0).standard_normal((1000, router.shape[1]), np.float32)
    scores = np.sort(1 / (1 + np.exp(-x @ router.T)), axis=1)
    assert np.median(scores[:, 12] - scores[:, 11]) > 0.02
    assert scores.std() > 0.2
