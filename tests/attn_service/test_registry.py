from __future__ import annotations

import pytest
import torch
from trimaran.errors import ConfigError, ModelFileError
from trimaran.gguf import GGUFFile
from trimaran.module_names import layer_of, tensor_name
from trimaran.rules import Choice
from trimaran.spec import read_spec
from trimaran.synth import write_random_model
from trimaran_attn.model.kinds import LINEAR
from trimaran_attn.registry import Kind, Registry, Site
from trimaran_attn.weights import Weights

CPU = torch.device("cpu")
PLAIN: Kind[Site] = Kind("plain")
PATH = "model.layers.1.self_attn.o_proj"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> GGUFFile:
    path = tmp_path_factory.mktemp("model") / "model.gguf"
    return GGUFFile.open(write_random_model(path, "v3", mix="Q8_0", tokenizer=False))


def make_registry(file: GGUFFile, **choices: Choice) -> Registry:
    registry = Registry(read_spec(file), Weights(file), CPU, torch.float32, choices)
    registry.register(PLAIN, "first", lambda site: site)
    registry.register(PLAIN, "second", lambda site: site)
    return registry


def test_without_rules_the_default_is_built_on_the_default_device(file: GGUFFile) -> None:
    site = make_registry(file).build(PATH, PLAIN, (3, 4))
    assert (site.path, site.shape, site.layer) == (PATH, (3, 4), 1)
    assert (site.device, site.dtype) == (CPU, torch.float32)
    assert site.child("x", PLAIN).path == f"{PATH}.x"


def test_a_choice_is_for_one_path(file: GGUFFile) -> None:
    registry = make_registry(file, **{PATH: Choice(1, dtype="bfloat16")})
    one, two = registry.build(PATH, PLAIN), registry.build(PATH.replace("1", "2"), PLAIN)
    assert (one.device, one.dtype) == (CPU, torch.bfloat16)
    assert (two.device, two.dtype) == (CPU, torch.float32)


def test_a_choice_names_the_implementation(file: GGUFFile) -> None:
    built = []
    registry = make_registry(file, **{PATH: Choice(1, "third")})
    registry.register(PLAIN, "third", lambda site: built.append(site.path) or site)  # type: ignore[func-returns-value]
    registry.build(PATH, PLAIN)
    registry.build("model.norm", PLAIN)
    assert built == [PATH]


def test_an_unknown_implementation_is_refused_by_name(file: GGUFFile) -> None:
    registry = make_registry(file, **{PATH: Choice(1, "magic")})
    with pytest.raises(ConfigError, match=r"o_proj: there is no plain 'magic'.*first, second"):
        registry.build(PATH, PLAIN)


def test_tensors_of_another_shape_or_name_are_refused(file: GGUFFile) -> None:
    weights = Weights(file)
    with pytest.raises(ModelFileError, match=r"blk\.1\.attn_output\.weight.*\[256, 128\].*\[1, 2\]"):
        weights.quantised(PATH, (1, 2))
    with pytest.raises(ModelFileError, match=r"blk\.9\.attn_output\.weight"):
        weights.dense("model.layers.9.self_attn.o_proj", (1, 2))


def test_rows_of_a_quantised_matrix_are_its_own(file: GGUFFile) -> None:
    spec = read_spec(file)
    table = Weights(file).quantised("model.embed_tokens", (spec.vocab_size, spec.hidden_size))
    index = torch.tensor([5, 0, spec.vocab_size - 1, 5])
    assert torch.equal(table.rows(index.numpy()), table.dequantize()[index])


def test_module_paths_name_tensors(file: GGUFFile) -> None:
    assert tensor_name("model.layers.12.mlp.shared_experts.up_proj") == "blk.12.ffn_up_shexp.weight"
    assert tensor_name("lm_head") == "output.weight"
    assert layer_of("model.layers.12.mlp") == 12
    assert LINEAR.name == "linear"
