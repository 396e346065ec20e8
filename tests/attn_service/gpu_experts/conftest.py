"""A small model, and the site of one of its layers' experts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from trimaran.gguf import GGUFFile
from trimaran.spec import read_spec
from trimaran.synth import write_random_model
from trimaran_attn.registry import Registry, Site
from trimaran_attn.weights import Weights

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("experts") / "model.gguf"
    return write_random_model(path, "v3", mix="Q4_K_M", seed=3, tokenizer=False)


@pytest.fixture(scope="session")
def site_of(model_path: Path) -> Callable[[int], Site]:
    file = GGUFFile.open(model_path)
    spec, weights = read_spec(file), Weights(file)

    def site(layer: int) -> Site:
        registry = Registry(spec, weights, CPU, torch.float32)
        path = f"model.layers.{layer}.mlp.experts"
        return Site(path, (), CPU, torch.float32, spec, weights, registry)

    return site


@pytest.fixture
def make_batch(site_of: Callable[[int], Site]) -> Callable[..., tuple[torch.Tensor, ...]]:
    spec = site_of(1).spec

    def make(n: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
        random = torch.Generator().manual_seed(seed)
        x = torch.randn(n, spec.hidden_size, generator=random)
        ids = torch.rand(n, spec.moe.n_experts, generator=random).argsort(1)[:, : spec.moe.top_k].int()
        return x, ids, torch.rand(n, spec.moe.top_k, generator=random)

    return make
