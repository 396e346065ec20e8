"""Which form Wkv_b gets from which file, and that the plan of memory counts it so."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
import trimaran_kernels
from numpy.typing import NDArray
from trimaran.gguf import GGMLType, GGUFFile
from trimaran.plan.weights import Form, weigh
from trimaran.spec import read_spec
from trimaran.synth import write_random_model
from trimaran_attn.model import latent_maps
from trimaran_attn.model.latent_maps import expanded_maps, packed_maps
from trimaran_attn.registry import Registry, Site
from trimaran_attn.weights import Weights
from trimaran_kernels import Mla, ThreadPool, usable_cpus

CPU = torch.device("cpu")
PATH = "model.layers.1.self_attn"
F32, F16, Q8_0 = GGMLType.F32, GGMLType.F16, GGMLType.Q8_0


def open_model(tmp_path: Path, layout: Literal["split", "kv_b"], k_b: GGMLType, v_b: GGMLType) -> GGUFFile:
    """`k_b` is the type of both halves in one."""

    def choose(name: str, shape: tuple[int, ...]) -> GGMLType:
        if "attn_k_b" in name or "attn_kv_b" in name:
            return k_b
        return v_b if "attn_v_b" in name else F32

    return GGUFFile.open(write_random_model(tmp_path / "m.gguf", layout=layout, mix=choose, tokenizer=False))


def site_of(file: GGUFFile) -> Site:
    spec, weights = read_spec(file), Weights(file)
    return Site(PATH, (), CPU, torch.float32, spec, weights, Registry(spec, weights, CPU, torch.float32))


CASES: list[tuple[Literal["split", "kv_b"], GGMLType, GGMLType, bool]] = [
    ("split", Q8_0, Q8_0, False),
    ("split", Q8_0, Q8_0, True),
    ("split", Q8_0, F16, False),
    ("split", F16, Q8_0, True),
    ("split", F32, F32, False),
    ("kv_b", Q8_0, Q8_0, False),
    ("kv_b", Q8_0, Q8_0, True),
]


@pytest.mark.parametrize(("layout", "k_b", "v_b", "exact"), CASES)
def test_they_take_what_the_plan_says(
    tmp_path: Path, layout: Literal["split", "kv_b"], k_b: GGMLType, v_b: GGMLType, exact: bool
) -> None:
    file = open_model(tmp_path, layout, k_b, v_b)
    spec = read_spec(file)
    items = weigh(spec, file.tensors, Form(on_gpu=False, exact=exact, packs_experts=True)).items
    planned = next(item.nbytes for item in items if item.part == "latent maps")
    assert packed_maps(site_of(file), exact=exact).nbytes * spec.n_layers == planned


def values(maps: trimaran_kernels.LatentMaps, site: Site) -> NDArray[np.float32]:
    """Of two tokens at the beginning of a request."""
    spec = site.spec
    dims = (spec.n_heads, spec.qk_nope_head_dim, spec.qk_rope_head_dim, spec.kv_lora_rank, spec.v_head_dim)
    pool = ThreadPool(usable_cpus(1))
    latent, rope = spec.kv_lora_rank, spec.qk_rope_head_dim
    raw = np.zeros(64 * (latent + rope) * 4, np.uint8)
    pages = trimaran_kernels.LatentPages(raw, "f32", latent, rope, 64)
    random = np.random.default_rng(0)
    angle = np.zeros((2, rope // 2), np.float32)
    kv = random.standard_normal((2, latent + rope), dtype=np.float32)
    weight, slots = np.ones(latent, np.float32), np.int32([0, 1])
    trimaran_kernels.store_latents(pool, pages, kv, weight, 1e-6, np.cos(angle), np.sin(angle), slots)
    q = random.standard_normal((2, spec.n_heads * (dims[1] + rope)), dtype=np.float32)
    out = np.empty((2, spec.n_heads * spec.v_head_dim), np.float32)
    rows, table = np.int32([[0, 2, 0, 0, 1]]), np.int32([0])
    Mla(pool, *dims, 0.1).attend(maps, q, np.cos(angle), np.sin(angle), pages, rows, table, out)
    return out


@pytest.mark.parametrize(("layout", "k_b", "v_b", "exact"), CASES)
def test_they_are_the_files_values(
    tmp_path: Path, layout: Literal["split", "kv_b"], k_b: GGMLType, v_b: GGMLType, exact: bool
) -> None:
    site = site_of(open_model(tmp_path, layout, k_b, v_b))
    whole = expanded_maps(site)
    expected = values(trimaran_kernels.LatentMaps(whole.k_b.numpy(), whole.v_b.numpy(), False), site)
    got = values(packed_maps(site, exact=exact), site)
    kept = exact or layout == "split"  # binary16 keeps what came as binary16
    assert np.array_equal(got, expected) == kept
    assert np.linalg.norm(got - expected) < 3e-4 * np.linalg.norm(expected)


def test_magnitudes_beyond_binary16_stay_in_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = site_of(open_model(tmp_path, "split", Q8_0, F16))
    blocks, floats = (half.numel() for half in (expanded_maps(site).k_b, expanded_maps(site).v_b))
    assert packed_maps(site, exact=False).nbytes == blocks // 32 * 34 + 2 * floats
    monkeypatch.setattr(latent_maps, "LARGEST_HALF", 1e-6)
    assert packed_maps(site, exact=False).nbytes == blocks // 32 * 34 + 4 * floats
