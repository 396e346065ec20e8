"""What a request gets does not depend on what else is computed, nor on how its prompt is cut, to the bit.

With one form of the attention. `auto` chooses it by a chunk's length, and the two round differently.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimaran_kernels
from torch import Tensor
from trimaran.gguf import GGUFFile
from trimaran.kv_format import KvFormat
from trimaran.spec import read_spec
from trimaran.synth import write_random_model
from trimaran.wire import SamplingParams
from trimaran_attn.kv_cache import LatentCache
from trimaran_attn.model.batch import Batch
from trimaran_attn.model.deepseek2 import Deepseek2, ForwardOptions, build_model
from trimaran_attn.model.modules import register_modules
from trimaran_attn.registry import Registry, Site
from trimaran_attn.request import Request
from trimaran_attn.runner import make_batch
from trimaran_attn.scheduler import Chunk, StepPlan
from trimaran_attn.weights import Weights

CPU = torch.device("cpu")
LENGTH = 150
N_PAGES = 16
PAGES_EACH = 4


class KernelExperts:
    """A layer's routed experts, computed by the kernels in this process."""

    def __init__(self, site: Site, pool: trimaran_kernels.ThreadPool) -> None:
        moe, hidden = site.spec.moe, site.spec.hidden_size
        wide = (moe.n_experts, moe.intermediate_size, hidden)
        narrow = (moe.n_experts, hidden, moe.intermediate_size)
        shapes = {"gate": wide, "up": wide, "down": narrow}
        matrices = [
            site.weights.quantised(f"{site.path}.{name}_proj", shape) for name, shape in shapes.items()
        ]
        self._engine = trimaran_kernels.ExpertEngine(
            pool, hidden, moe.intermediate_size, moe.n_experts, moe.top_k
        )
        gate, up, down = ((int(matrix.type), matrix.raw) for matrix in matrices)
        self._engine.add_layer(site.layer, gate, up, down, 0, moe.n_experts)

    def submit(self, layer: int, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        y = torch.empty_like(x)
        arrays = (array.contiguous().numpy() for array in (x, ids, weights))
        assert self._engine.forward(layer, *arrays, y.numpy()) == 0
        return y

    def wait(self, ticket: Tensor) -> Tensor:
        return ticket


class Bench:
    """A model in the way that the service computes it on a CPU, and its cache."""

    def __init__(self, path: Path, linears: str, mla: Any, kv: KvFormat, threads: int = 1) -> None:
        file = GGUFFile.open(path)
        spec = read_spec(file)
        registry = Registry(spec, Weights(file), CPU, torch.float32)
        pool = trimaran_kernels.ThreadPool(trimaran_kernels.usable_cpus(threads))
        experts: Callable[[Site], KernelExperts] = lambda site: KernelExperts(site, pool)  # noqa: E731
        register_modules(registry, experts=experts, pool=pool, linears=linears, mla=mla, native=True)
        self._registry, self._spec = registry, spec
        self._cache = LatentCache(spec, N_PAGES, CPU, kv)
        self._model = self._build(1)

    def in_parts(self, micro_batches: int) -> None:
        self._model = self._build(micro_batches)

    def run(self, *chunks: Chunk) -> Tensor:
        """Logits of all tokens of one step."""
        batch: Batch = make_batch(StepPlan(chunks), CPU)
        rows = torch.arange(len(batch.token_ids))
        return self._model.forward(replace(batch, sampled_rows=rows), self._cache).logits

    def _build(self, micro_batches: int) -> Deepseek2:
        options = ForwardOptions(micro_batches)
        return build_model(self._spec, self._registry, CPU, options=options)


def chunk(request: int, start: int, stop: int) -> Chunk:
    """Of one of a few requests, each with pages of its own."""
    ids = np.random.default_rng(request).integers(0, 250, LENGTH).tolist()
    pages = list(range(request * PAGES_EACH, (request + 1) * PAGES_EACH))
    return Chunk(Request(str(request), ids, SamplingParams(), 9, pages=pages), start, stop - start)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_model(
        tmp_path_factory.mktemp("model") / "model.gguf", "v3", mix="Q4_K_M", seed=5, tokenizer=False
    )


@pytest.fixture(
    scope="module",
    params=[
        ("packed", "absorbed", "bf16"),
        ("packed", "naive", "int8"),
        ("packed", "absorbed", "fp8"),
        ("quantised", "naive", "f32"),
    ],
    ids="-".join,
)
def bench(request: pytest.FixtureRequest, path: Path) -> Bench:
    return Bench(path, *request.param)


def test_chunks_and_cached_prefixes(bench: Bench) -> None:
    whole = bench.run(chunk(0, 0, LENGTH))
    for borders in ([0, 64, LENGTH], [0, 1, 7, 128, 149, LENGTH], [0, 100, LENGTH]):
        parts = [bench.run(chunk(0, *border)) for border in pairwise(borders)]
        assert torch.equal(torch.cat(parts), whole)


def test_prompts_beside_others(bench: Bench) -> None:
    alone = bench.run(chunk(0, 0, LENGTH))
    bench.run(chunk(1, 0, 90))
    together = bench.run(chunk(1, 90, 91), chunk(0, 0, LENGTH), chunk(2, 0, 20))
    assert torch.equal(together[1 : 1 + LENGTH], alone)


def test_streams_beside_others(bench: Bench) -> None:
    for request in range(3):
        bench.run(chunk(request, 0, LENGTH - 1))
    alone = bench.run(chunk(0, LENGTH - 1, LENGTH))
    together = bench.run(*(chunk(request, LENGTH - 1, LENGTH) for request in (2, 0, 1)))
    assert torch.equal(together[1:2], alone)


@pytest.mark.parametrize("count", [2, 3])
def test_steps_in_parts(bench: Bench, count: int) -> None:
    chunks = (chunk(1, 0, 40), chunk(0, 0, 90))
    whole = bench.run(*chunks)
    bench.in_parts(count)
    try:
        assert torch.equal(bench.run(*chunks), whole)
    finally:
        bench.in_parts(1)


def test_parts_keep_the_form_of_the_whole(path: Path) -> None:
    bench = Bench(path, "packed", "auto", "bf16")
    whole = bench.run(chunk(0, 0, LENGTH))
    bench.in_parts(4)
    assert torch.equal(bench.run(chunk(0, 0, LENGTH)), whole)


def test_threads(path: Path) -> None:
    one, two = (Bench(path, "packed", "auto", "bf16", threads) for threads in (1, 2))
    assert torch.equal(one.run(chunk(0, 0, LENGTH)), two.run(chunk(0, 0, LENGTH)))


@pytest.mark.parametrize(("linears", "tolerance"), [("quantised", 1e-5), ("packed", 2e-2)])
def test_where_the_form_changes_it_is_rounding(path: Path, linears: str, tolerance: float) -> None:
    """Rounding to int8 makes more of a last bit than float32 does."""
    bench = Bench(path, linears, "auto", "bf16")
    whole = bench.run(chunk(0, 0, LENGTH))
    parts = torch.cat([bench.run(chunk(0, *border)) for border in pairwise([0, 7, 64, 130, LENGTH])])
    assert not torch.equal(parts, whole), "the chunks did not change the form: the test tests nothing"
    assert float((parts - whole).abs().max()) < tolerance * float(whole.abs().max())
