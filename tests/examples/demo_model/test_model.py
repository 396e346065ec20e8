from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader
from torch import nn
from trimaran_demo.evaluate import answer_of, generate
from trimaran_demo.export import read_gguf, write_gguf
from trimaran_demo.model import DemoModel, ModelConfig, MoE
from trimaran_demo.names import from_gguf, to_gguf
from trimaran_demo.optim import orthogonalise
from trimaran_demo.parity import largest_difference
from trimaran_demo.tokenizer import train_tokenizer
from trimaran_demo.train import balance_experts


@pytest.fixture(scope="module")
def model() -> DemoModel:
    """Random weights whose gates, norms and biases all matter."""
    torch.manual_seed(0)
    model = DemoModel(ModelConfig()).eval()
    for name, p in model.named_parameters():
        if p.dim() == 1:
            p.data += 0.1 * torch.randn_like(p)
        if name == "lm_head.weight":
            nn.init.normal_(p, std=0.06)
    for layer in model.layers:
        if isinstance(layer.mlp, MoE):
            layer.mlp.gate.e_score_correction_bias.normal_(std=0.2)
    return model


def test_logits_equal_those_of_transformers(model: DemoModel) -> None:
    ids = torch.randint(0, model.config.vocab_size, (2, 150))
    assert largest_difference(model, ids) < 1e-4


@torch.no_grad()
def test_groups_do_not_see_each_other(model: DemoModel) -> None:
    short, long = torch.randint(0, 1000, (3, 7)), torch.randint(0, 1000, (2, 20))
    together = model([short, long])
    torch.testing.assert_close(together, torch.cat([model([short]), model([long])]), rtol=1e-4, atol=1e-4)


def test_gguf_names_go_both_ways(model: DemoModel) -> None:
    state = model.state_dict()
    back = from_gguf(to_gguf(state, model.config), model.config)
    assert back.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(back[name], tensor), name


@torch.no_grad()
def test_an_exported_file_computes_the_same(model: DemoModel, tmp_path: Path) -> None:
    path = tmp_path / "demo.gguf"
    write_gguf(path, model, train_tokenizer(size=300), "F32")
    ids = [torch.randint(0, 1000, (1, 40))]
    torch.testing.assert_close(read_gguf(path)(ids), model(ids))
    pre = GGUFReader(path).get_field("tokenizer.ggml.pre")
    assert pre is not None
    assert pre.contents() == "deepseek-v3"


def test_most_of_the_quantised_weights_are_k_quants(model: DemoModel, tmp_path: Path) -> None:
    path = tmp_path / "demo.gguf"
    write_gguf(path, model, train_tokenizer(size=300))
    tensors = {t.name: t for t in GGUFReader(path).tensors}
    k_quants = {GGMLQuantizationType.Q4_K, GGMLQuantizationType.Q6_K}
    share = sum(t.n_elements for t in tensors.values() if t.tensor_type in k_quants)
    assert share > 0.95 * sum(t.n_elements for t in tensors.values())
    assert tensors["blk.1.ffn_gate_inp.weight"].tensor_type == GGMLQuantizationType.F32


def test_overloaded_experts_lose_bias(model: DemoModel) -> None:
    moe = model.layers[1].mlp
    assert isinstance(moe, MoE)
    before = moe.gate.e_score_correction_bias.clone()
    moe.load = torch.tensor([100] + [1] * 15)
    balance_experts(model, 0.5)
    moved = moe.gate.e_score_correction_bias - before
    assert moved[0] == -0.5
    assert (moved[1:] == 0.5).all()
    moe.gate.e_score_correction_bias.copy_(before)


def test_orthogonalised_updates_have_singular_values_near_one() -> None:
    torch.manual_seed(1)
    values = torch.linalg.svdvals(orthogonalise(torch.randn(64, 128)))
    assert values.min() > 0.5
    assert values.max() < 1.5


def test_a_wrong_guess_does_not_change_what_is_generated(model: DemoModel) -> None:
    prompt = [0, 5, 6, 7]
    plain = generate(model, prompt, eos=1, limit=12)
    assert generate(model, prompt, eos=1, start=[*plain[:3], 999, 998], limit=12) == plain


def test_the_answer_is_what_follows_the_reasoning() -> None:
    assert answer_of("1+1=2\n</think>\n\n2") == "2"
    assert answer_of("The timer is set.") == "The timer is set."
