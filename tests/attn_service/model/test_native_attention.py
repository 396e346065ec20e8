"""One call for a layer's attention, against a call for each of its matrices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import trimaran_kernels
from trimaran.errors import KernelError
from trimaran.gguf import GGUFFile
from trimaran.rules import Choice
from trimaran.spec import read_spec
from trimaran.synth import write_random_model
from trimaran.timeline import Tracer
from trimaran_attn.kv_cache import PAGE_SIZE, LatentCache
from trimaran_attn.model.batch import Batch, Segment
from trimaran_attn.model.kinds import ATTENTION
from trimaran_attn.model.modules import register_modules
from trimaran_attn.model.native_attention import NativeLatentAttention
from trimaran_attn.model.rope import Rope
from trimaran_attn.model.step import Step
from trimaran_attn.registry import Registry
from trimaran_attn.weights import Weights

CPU = torch.device("cpu")
LAYER = 1


def build(
    path: Path, linears: str, choices: dict[str, Choice] | None = None
) -> tuple[NativeLatentAttention, Any]:
    file = GGUFFile.open(path)
    spec = read_spec(file)
    registry = Registry(spec, Weights(file), CPU, torch.float32, choices)
    pool = trimaran_kernels.ThreadPool(trimaran_kernels.usable_cpus(2))
    experts: Any = None  # of no use to the attention
    register_modules(registry, experts=experts, pool=pool, linears=linears, mla="auto", native=True)
    attention = registry.build(f"model.layers.{LAYER}.self_attn", ATTENTION)
    assert isinstance(attention, NativeLatentAttention)
    return attention, spec


def make_step(spec: Any) -> Step:
    """Three tokens behind 70 others, and a chunk of 5."""
    segments = (Segment(slice(0, 3), 70, (2, 0)), Segment(slice(3, 8), 0, (1,)))
    slots = [70 - PAGE_SIZE + i for i in range(3)] + [PAGE_SIZE + i for i in range(5)]
    positions = torch.tensor([70, 71, 72, 0, 1, 2, 3, 4])
    batch = Batch(torch.zeros(8, dtype=torch.int64), positions, torch.tensor(slots), segments, positions[:0])
    cos, sin = Rope(spec.rope, spec.qk_rope_head_dim, CPU).angles(positions)
    cache = LatentCache(spec, 3, CPU, "bf16")
    cache.layer_bytes(LAYER).zero_()
    return Step(batch, cos, sin, cache, Tracer())


@pytest.mark.parametrize("preset", ["v3", "v2-lite"])
@pytest.mark.parametrize("linears", ["packed", "quantised"])
def test_one_call_gives_the_same_bits(tmp_path: Path, preset: Any, linears: str) -> None:
    attention, spec = build(write_random_model(tmp_path / "m.gguf", preset, tokenizer=False), linears)
    x = torch.randn(8, spec.hidden_size, generator=torch.Generator().manual_seed(1))
    whole, parts = make_step(spec), make_step(spec)
    assert attention.whole is not None
    got = attention(x, whole)
    expected = attention.by_parts(x, parts)
    assert torch.equal(got, expected)
    assert got.abs().max() > 0
    assert torch.equal(whole.cache.layer_bytes(LAYER), parts.cache.layer_bytes(LAYER))


def test_a_matrix_of_another_kind_is_called_by_itself(tmp_path: Path) -> None:
    path = write_random_model(tmp_path / "m.gguf", "v3", tokenizer=False)
    dense = {f"model.layers.{LAYER}.self_attn.o_proj": Choice(1, "dense")}
    attention, spec = build(path, "packed", dense)
    assert attention.whole is None
    near, _ = build(path, "packed")
    x = torch.randn(8, spec.hidden_size, generator=torch.Generator().manual_seed(1))
    got, expected = attention(x, make_step(spec)), near(x, make_step(spec))
    assert 0 < float((got - expected).norm() / expected.norm()) < 0.05


def test_matrices_that_do_not_fit_are_refused() -> None:
    pool = trimaran_kernels.ThreadPool(trimaran_kernels.usable_cpus(1))
    mla = trimaran_kernels.Mla(pool, 2, 4, 2, 8, 4, 1.0)

    def matrix(rows: int, columns: int) -> trimaran_kernels.Linear:
        raw = torch.zeros(rows * columns * 4, dtype=torch.uint8).numpy()
        return trimaran_kernels.Linear(pool, 0, raw, rows, columns)

    maps = trimaran_kernels.LatentMaps(torch.zeros(2, 4, 8).numpy(), torch.zeros(2, 8, 4).numpy(), False)
    norm = torch.ones(8).numpy()
    good = [pool, mla, None, None, matrix(12, 16), matrix(10, 16), norm, maps, matrix(16, 8), 1e-6]
    trimaran_kernels.AttentionLayer(*good)
    for place, other, message in [
        (4, matrix(11, 16), "query: rows"),
        (4, matrix(12, 8), "query: columns"),
        (5, matrix(9, 16), "kv: rows"),
        (6, norm[:7], "kv_norm"),
        (8, matrix(16, 7), "output: columns"),
        (8, matrix(15, 8), "output: rows"),
        (3, norm, "query_norm"),
    ]:
        bad = [*good]
        bad[place] = other
        with pytest.raises(KernelError, match=message):
            trimaran_kernels.AttentionLayer(*bad)
