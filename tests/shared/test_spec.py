"""Specs survive the way through a file; older files are completed; nonsense is one clear line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from trimaran.errors import ModelFileError
from trimaran.gguf import GGMLType, GGUFFile, TensorData, write_gguf
from trimaran.gguf.encode import Writable
from trimaran.model_tensors import MlaLayout
from trimaran.spec import ModelSpec, RopeSpec, read_spec
from trimaran.synth import SHAPES, ShapeName, model_metadata, random_spec, synth_tokenizer
from trimaran.synth.weights import tensor_shapes

Keys = dict[str, Writable]
Shapes = dict[str, tuple[int, ...]]


def tiny(shape: ShapeName = "v3") -> ModelSpec:
    """A spec whose tensors cost nothing to write."""
    spec = random_spec(shape)
    return replace(spec, hidden_size=4, dense_intermediate_size=4, moe=replace(spec.moe, intermediate_size=4))


def as_read(spec: ModelSpec) -> ModelSpec:
    """The spec with its floats rounded as the file stores them."""

    def rounded(x: float) -> float:
        return float(np.float32(x))

    rope = replace(
        spec.rope, theta=rounded(spec.rope.theta), log_multiplier=rounded(spec.rope.log_multiplier)
    )
    moe = replace(spec.moe, weights_scale=rounded(spec.moe.weights_scale))
    return replace(spec, rms_eps=rounded(spec.rms_eps), rope=rope, moe=moe)


def write(path: Path, keys: Keys, shapes: Shapes, kind: GGMLType = GGMLType.BF16) -> GGUFFile:
    tensors = []
    for name, shape in shapes.items():
        size = int(np.prod(shape)) * kind.type_size
        tensors.append(TensorData(name, kind, shape, np.zeros(size, np.uint8)))
    write_gguf(path, keys, tensors)
    return GGUFFile.open(path)


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., ModelSpec]:
    """Write a model that differs from `spec` in some keys and tensors (None takes one away), and read it."""

    def read(
        spec: ModelSpec,
        keys: dict[str, Writable | None] | None = None,
        shapes: dict[str, tuple[int, ...] | None] | None = None,
        layout: MlaLayout = "split",
    ) -> ModelSpec:
        all_keys = model_metadata(spec, layout) | (keys or {})
        all_shapes = tensor_shapes(spec, layout) | (shapes or {})
        return read_spec(
            write(
                tmp_path / "model.gguf",
                {key: value for key, value in all_keys.items() if value is not None},
                {name: shape for name, shape in all_shapes.items() if shape is not None},
            )
        )

    return read


@pytest.mark.parametrize("layout", ["kv_b", "split"])
@pytest.mark.parametrize("shape", SHAPES)
def test_round_trip(read: Callable[..., ModelSpec], shape: ShapeName, layout: MlaLayout) -> None:
    assert read(tiny(shape), layout=layout) == as_read(tiny(shape))


@pytest.mark.parametrize("yarn", [False, True])
@pytest.mark.parametrize("shape", ["v3", "moonlight"])
def test_yarn_can_be_chosen(read: Callable[..., ModelSpec], shape: ShapeName, yarn: bool) -> None:
    rope = random_spec(shape, yarn=yarn).rope
    assert (rope.factor > 1.0) == yarn
    assert read(replace(tiny(shape), rope=rope)).rope.factor == rope.factor


GROUP_KEYS = {"deepseek2.expert_group_count": None, "deepseek2.expert_group_used_count": None}


@pytest.mark.parametrize(
    ("shape", "n_experts", "groups"),
    [("v3", 256, (8, 4)), ("v3", 384, (1, 1)), ("v2", 160, (8, 3)), ("v2", 64, (1, 1))],
)
def test_groups_of_older_files(
    read: Callable[..., ModelSpec], shape: ShapeName, n_experts: int, groups: tuple[int, int]
) -> None:
    spec = tiny(shape)
    spec = replace(spec, moe=replace(spec.moe, n_experts=n_experts))
    moe = read(spec, GROUP_KEYS).moe
    assert (moe.n_groups, moe.n_groups_used) == groups


def test_gate_of_older_files(read: Callable[..., ModelSpec]) -> None:
    keys = {"deepseek2.expert_gating_func": None, "deepseek2.expert_weights_norm": None}
    with_bias, without = read(tiny("v3"), keys).moe, read(tiny("v2"), keys).moe
    assert (with_bias.gate, with_bias.normalise_weights, with_bias.group_score) == ("sigmoid", True, "top2")
    assert (without.gate, without.normalise_weights, without.group_score) == ("softmax", False, "max")


def test_scale_zero_means_none(read: Callable[..., ModelSpec]) -> None:
    assert read(tiny(), {"deepseek2.expert_weights_scale": 0.0}).moe.weights_scale == 1.0
    assert read(tiny(), {"deepseek2.expert_weights_scale": None}).moe.weights_scale == 1.0


def test_vocabulary_without_its_key(read: Callable[..., ModelSpec]) -> None:
    spec, tokens = tiny(), synth_tokenizer()
    no_size: Keys = {"deepseek2.vocab_size": None}
    assert read(spec, no_size | tokens.metadata()).vocab_size == len(tokens.tokens)
    assert read(spec, no_size).vocab_size == spec.vocab_size


def test_sparse_rope_keys(read: Callable[..., ModelSpec]) -> None:
    keys = {"deepseek2.rope.freq_base": None, "deepseek2.rope.scaling.type": "none"}
    assert read(tiny(), keys).rope == RopeSpec(theta=10000.0)
    unsaid = ("yarn_beta_fast", "yarn_beta_slow", "yarn_log_multiplier")
    rope = read(tiny(), {f"deepseek2.rope.scaling.{key}": None for key in unsaid}).rope
    assert (rope.beta_fast, rope.beta_slow, rope.log_multiplier) == (32.0, 1.0, 0.0)


@pytest.mark.parametrize("stripped", [False, True])
def test_prediction_layers_are_not_counted(read: Callable[..., ModelSpec], stripped: bool) -> None:
    spec = tiny()
    extra = {} if stripped else {"blk.3.nextn.eh_proj.weight": (4, 8), "blk.3.attn_norm.weight": (4,)}
    keys = {"deepseek2.block_count": 4, "deepseek2.nextn_predict_layers": 1}
    assert read(spec, keys, extra).n_layers == 3


def test_prediction_layers_beside_the_count(read: Callable[..., ModelSpec]) -> None:
    extra = {"blk.3.nextn.eh_proj.weight": (4, 8)}
    assert read(tiny(), {"deepseek2.nextn_predict_layers": 1}, extra).n_layers == 3


def test_tied_output_and_foreign_tensors(read: Callable[..., ModelSpec]) -> None:
    shapes = {"output.weight": None, "rope_freqs.weight": (8,)}
    assert read(tiny(), shapes=shapes).vocab_size == tiny().vocab_size


def test_both_layouts_in_one_file(read: Callable[..., ModelSpec]) -> None:
    spec = tiny()
    split = {name: shape for name, shape in tensor_shapes(spec, "split").items() if "attn_k_b" in name}
    assert read(spec, shapes=split, layout="kv_b").n_heads == spec.n_heads


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("general.architecture", "llama", r"architecture is 'llama' \(supported is 'deepseek2'"),
        ("general.architecture", None, "'general.architecture' is missing"),
        ("deepseek2.block_count", None, "'deepseek2.block_count' is missing"),
        ("deepseek2.block_count", 0, "'deepseek2.block_count': 0 makes no sense"),
        ("deepseek2.block_count", "3", "'deepseek2.block_count' is not an integer"),
        ("deepseek2.block_count", 1 << 40, "'deepseek2.block_count': 1099511627776 makes no sense"),
        ("deepseek2.block_count", (1 << 31) - 1, "tensor 'blk.3.attn_norm.weight' is missing"),
        ("deepseek2.embedding_length", -4, "'deepseek2.embedding_length': -4 makes no sense"),
        ("deepseek2.nextn_predict_layers", 3, "'deepseek2.nextn_predict_layers': 3 of 3"),
        ("deepseek2.rope.dimension_count", 15, "'deepseek2.rope.dimension_count': 15 is odd"),
        ("deepseek2.rope.dimension_count", 48, "'deepseek2.attention.key_length': 48 leaves no room"),
        ("deepseek2.rope.freq_base", 0.0, "'deepseek2.rope.freq_base': 0.0 is not positive"),
        ("deepseek2.rope.scaling.type", "longrope", "'longrope' is not supported"),
        ("deepseek2.rope.scaling.factor", 0.5, "'deepseek2.rope.scaling.factor': 0.5 is below 1"),
        ("deepseek2.rope.scaling.factor", float("nan"), "factor': nan is no finite number"),
        ("deepseek2.rope.scaling.original_context_length", None, "original_context_length' is missing"),
        ("deepseek2.attention.layer_norm_rms_epsilon", True, "epsilon' is not a"),
        ("deepseek2.expert_gating_func", 4, "'deepseek2.expert_gating_func': 4 is not supported"),
        (
            "deepseek2.expert_group_count",
            5,
            "'deepseek2.expert_group_count': 16 experts cannot form 5 groups",
        ),
        ("deepseek2.expert_group_count", 16, "16 experts cannot form 16 groups"),
        ("deepseek2.expert_group_used_count", 5, "'deepseek2.expert_group_used_count': 5 of 4"),
        ("deepseek2.expert_used_count", 9, "'deepseek2.expert_used_count': 9 of 8"),
        ("deepseek2.vocab_size", 5, r"'token_embd.weight' has shape \[\d+, 4\], not \[5, 4\]"),
    ],
)
def test_nonsense_names_the_key(
    read: Callable[..., ModelSpec], key: str, value: Writable | None, message: str
) -> None:
    with pytest.raises(ModelFileError, match=message) as caught:
        read(tiny(), {key: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("layout", ["kv_b", "split"])
@pytest.mark.parametrize("shape", ["v2-lite", "v3"])
def test_every_tensor_is_needed(tmp_path: Path, shape: ShapeName, layout: MlaLayout) -> None:
    spec = tiny(shape)
    shapes = tensor_shapes(spec, layout)
    optional = {"output.weight", *(name for name in shapes if "exp_probs_b" in name)}
    for name in (name for name in shapes if name.startswith(("blk.0.", "blk.2.", "output", "token"))):
        left = {key: value for key, value in shapes.items() if key != name}
        file = write(tmp_path / "model.gguf", model_metadata(spec, layout), left)
        if name in optional:
            read_spec(file)
            continue
        missing = "blk.0.attn_k_b.weight" if name == "blk.0.attn_kv_b.weight" else name
        missing = "blk.2.attn_k_b.weight" if name == "blk.2.attn_kv_b.weight" else missing
        with pytest.raises(ModelFileError, match=rf"tensor '{missing}' is missing"):
            read_spec(file)


def test_every_shape_is_checked(tmp_path: Path) -> None:
    spec = tiny()
    shapes = tensor_shapes(spec, "split")
    for name in (name for name in shapes if name.startswith(("blk.0.", "blk.2.", "output", "token"))):
        wrong = shapes | {name: (*shapes[name][:-1], shapes[name][-1] + 1)}
        file = write(tmp_path / "model.gguf", model_metadata(spec, "split"), wrong)
        with pytest.raises(ModelFileError, match=rf"tensor '{name}' has shape .* not \["):
            read_spec(file)


def test_integers_are_no_weights(tmp_path: Path) -> None:
    spec = tiny()
    file = write(
        tmp_path / "model.gguf", model_metadata(spec, "kv_b"), tensor_shapes(spec, "kv_b"), GGMLType.I8
    )
    with pytest.raises(ModelFileError, match=r"'token_embd\.weight' has type I8, not weights"):
        read_spec(file)
