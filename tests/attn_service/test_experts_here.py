"""Experts by the kernels in this process, against those that torch computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import trimaran_kernels
from trimaran.errors import KernelError
from trimaran.gguf import GGUFFile
from trimaran.spec import read_spec
from trimaran.synth import write_random_model
from trimaran_attn.experts import build_local_experts
from trimaran_attn.experts_here import ExpertsHere
from trimaran_attn.model.kinds import EXPERTS
from trimaran_attn.registry import Registry, Site
from trimaran_attn.weights import Weights

LAYERS = (1, 2)


@pytest.mark.parametrize(("packs", "tolerance"), [(False, 1e-4), (True, 0.02)])
@pytest.mark.parametrize("mix", ["Q8_0", "F32"])
def test_they_are_those_of_torch(tmp_path: Path, packs: bool, tolerance: float, mix: str) -> None:
    pool = trimaran_kernels.ThreadPool(trimaran_kernels.usable_cpus(1))
    here = ExpertsHere(pool, "auto", packs=packs, max_tokens=16)
    with GGUFFile.open(write_random_model(tmp_path / "m.gguf", "v3", mix=mix, tokenizer=False)) as file:
        spec = read_spec(file)
        registry = Registry(spec, Weights(file), torch.device("cpu"), torch.float32)
        registry.register(EXPERTS, "here", here.take)
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(5, spec.hidden_size, generator=generator)
        ids = torch.stack([torch.randperm(spec.moe.n_experts, generator=generator) for _ in x])
        ids = ids[:, : spec.moe.top_k].int()
        ids[0, 0] = -1
        weights = torch.rand(ids.shape, generator=generator)
        for layer in LAYERS:
            built: Any = registry.build(f"model.layers.{layer}.mlp.experts", EXPERTS)
            assert built is here
        for layer in LAYERS:
            got = here.wait(here.submit(layer, x, ids, weights))
            torchs = build_local_experts(site_of(registry, spec, file, layer))
            expected = torchs.wait(torchs.submit(layer, x, ids, weights))
            error = float((got - expected).norm() / expected.norm())
            assert error < tolerance
            assert (error > 1e-4) == (packs and mix != "F32")  # plain numbers have no packed layout
        with pytest.raises(KernelError, match="layer 0: it has no such layer"):
            here.submit(0, x, ids, weights)


def site_of(registry: Registry, spec: Any, file: GGUFFile, layer: int) -> Any:
    path = f"model.layers.{layer}.mlp.experts"
    return Site(path, (), torch.device("cpu"), torch.float32, spec, Weights(file), registry)
