"""All layers in one native call, against a call for each of their parts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimaran_kernels
from trimaran.errors import KernelError
from trimaran.gguf import GGUFFile
from trimaran.rules import Choice
from trimaran.spec import ModelSpec, read_spec
from trimaran.synth import write_random_model
from trimaran.timeline import Tracer
from trimaran_attn.experts import build_local_experts
from trimaran_attn.experts_here import ExpertsHere
from trimaran_attn.kv_cache import PAGE_SIZE, LatentCache
from trimaran_attn.model.batch import Batch, Segment
from trimaran_attn.model.deepseek2 import Deepseek2, ForwardOptions, build_model
from trimaran_attn.model.modules import register_modules
from trimaran_attn.model.native_layers import NativeLayers, native_layers
from trimaran_attn.registry import Registry, Site
from trimaran_attn.stopping import StepStop, StepStoppedError
from trimaran_attn.weights import Weights
from trimaran_kernels.hop import CallGate

CPU = torch.device("cpu")
N_PAGES = 4


class Heard(ExpertsHere):
    """Experts that remember how long they were said to take."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.seconds: list[float] = []

    def took(self, seconds: Sequence[float]) -> None:
        self.seconds += seconds


def build(
    path: Path,
    *,
    linears: str = "packed",
    choices: dict[str, Choice] | None = None,
    options: ForwardOptions | None = None,
    experts: Any = None,
    defer: int = 0,
) -> tuple[Deepseek2, ModelSpec, Heard]:
    file = GGUFFile.open(path)
    spec = read_spec(file)
    registry = Registry(spec, Weights(file), CPU, torch.float32, choices)
    pool = trimaran_kernels.ThreadPool(trimaran_kernels.usable_cpus(2))
    here = Heard(pool, "auto", packs=True, max_tokens=16)
    register_modules(
        registry,
        experts=experts or here.take,
        pool=pool,
        linears=linears,
        mla="auto",
        native=True,
        defer_experts=defer,
    )
    return build_model(spec, registry, CPU, options=options), spec, here


def packed_model(folder: Path, preset: Any = "v3") -> Path:
    """All of its matrices have a packed layout."""
    return write_random_model(folder / "m.gguf", preset, mix="Q8_0", tokenizer=False)


def by_parts(model: Deepseek2) -> Deepseek2:
    """The same without the one call."""
    model._native = None
    return model


def make_batch(lengths: Sequence[int]) -> Batch:
    """Chunks of so many tokens: the first behind 10 others, a page and a bit for each."""
    segments, slots, positions, start = [], [], [], 0
    for page, length in enumerate(lengths):
        first = 10 if page == 0 else 0
        segments.append(Segment(slice(start, start + length), first, (page,)))
        slots += [page * PAGE_SIZE + first + i for i in range(length)]
        positions += range(first, first + length)
        start += length
    generator = torch.Generator().manual_seed(start)
    return Batch(
        torch.randint(0, 200, (start,), generator=generator),
        torch.tensor(positions),
        torch.tensor(slots),
        tuple(segments),
        torch.arange(start),
    )


def make_cache(spec: ModelSpec) -> LatentCache:
    cache = LatentCache(spec, N_PAGES, CPU, "bf16")
    for layer in range(spec.n_layers):
        cache.layer_bytes(layer).zero_()
    return cache


@pytest.mark.parametrize("preset", ["v3", "v2-lite"])
@pytest.mark.parametrize("lengths", [(1,), (1, 1), (17,), (3, 1, 40)])
def test_one_call_gives_the_same_bits(tmp_path: Path, preset: Any, lengths: tuple[int, ...]) -> None:
    model, spec, here = build(packed_model(tmp_path, preset))
    assert isinstance(model._native, NativeLayers)
    assert model._native.is_ready
    batch, whole, parts = make_batch(lengths), make_cache(spec), make_cache(spec)
    got = model.forward(batch, whole)
    assert len(here.seconds) == spec.n_layers - spec.n_dense_layers
    assert min(here.seconds) > 0
    expected = by_parts(model).forward(batch, parts)
    assert torch.equal(got.logits, expected.logits)
    assert got.logits.abs().max() > 0
    for layer in range(spec.n_layers):
        assert torch.equal(whole.layer_bytes(layer), parts.layer_bytes(layer))


def test_matrices_of_the_file_itself_are_kernels_too(tmp_path: Path) -> None:
    path = packed_model(tmp_path)
    model, _, _ = build(path, linears="quantised")
    assert model._native is None, "networks of unpacked matrices are several kernels"


def test_its_parts_are_on_the_timeline(tmp_path: Path) -> None:
    tracer = Tracer()
    path = packed_model(tmp_path)
    model, spec, _ = build(path, options=ForwardOptions(tracer=tracer))
    tracer.start()
    model.forward(make_batch((2,)), make_cache(spec))
    spans = tracer.stop()
    for layer in range(spec.n_layers):
        mine = {span.name: span for span in spans if span.layer == layer}
        routed = {"gate", "experts", "shared experts"} if layer >= spec.n_dense_layers else set()
        assert mine.keys() == {"attention", "feed forward"} | routed
        assert mine["attention"].end_ns == mine["feed forward"].start_ns
        assert all(span.start_ns < span.end_ns for span in mine.values())
        assert mine["attention"].tokens == 2
    starts = [span.start_ns for span in spans if span.name == "attention"]
    assert starts == sorted(starts)


def test_experts_that_refuse_end_the_step(tmp_path: Path) -> None:
    model, spec, here = build(packed_model(tmp_path))
    model._embed = lambda part: torch.full((len(part.token_ids), spec.hidden_size), torch.nan)  # type: ignore[method-assign]
    with pytest.raises(KernelError, match=f"layer {spec.n_dense_layers}: the input holds NaN or infinity"):
        model.forward(make_batch((2,)), make_cache(spec))
    assert here.seconds == []


def stopped_by(cache: LatentCache, layer: int) -> StepStop:
    """Set by a layer itself, when it writes the latent of the first token behind ten others."""
    stop = StepStop()
    entries = cache.layer_bytes(layer).flatten()
    entry = len(entries) // (N_PAGES * PAGE_SIZE)
    stop.flag = entries[10 * entry : 10 * entry + 4].numpy().view(np.int32)
    return stop


@pytest.mark.parametrize("native", [True, False])
def test_a_step_ends_between_two_layers_when_it_is_stopped(tmp_path: Path, native: bool) -> None:
    path, (_, spec, _) = packed_model(tmp_path), build(packed_model(tmp_path))
    cache = make_cache(spec)
    model, _, _ = build(path, options=ForwardOptions(stop=stopped_by(cache, 1)))
    batch = make_batch((3,))
    with pytest.raises(StepStoppedError):
        (model if native else by_parts(model)).forward(batch, cache)
    written = [bool(cache.layer_bytes(layer).any()) for layer in range(spec.n_layers)]
    assert spec.n_layers > 2
    assert written == [True, True] + [False] * (spec.n_layers - 2)
    expected = build(path)[0].forward(batch, make_cache(spec)).logits
    cache.layer_bytes(1).zero_()
    model._options.stop.flag = np.zeros(1, np.int32)
    assert torch.equal(model.forward(batch, cache).logits, expected), (
        "the next step is as if nothing had been"
    )


def test_experts_elsewhere_are_asked_layer_by_layer(tmp_path: Path) -> None:
    model, spec, here = build(packed_model(tmp_path))
    batch = make_batch((3,))
    expected = model.forward(batch, make_cache(spec)).logits
    here.seconds.clear()
    type(here).calls = property(lambda _: None)  # type: ignore[assignment]
    try:
        assert model._native is not None
        assert not model._native.is_ready
        # Experts here answer all the same: what counts is that they are asked one by one.
        assert torch.equal(model.forward(batch, make_cache(spec)).logits, expected)
    finally:
        del type(here).calls
    assert here.seconds == []


@pytest.mark.parametrize("why", ["local experts", "deferral", "a dense matrix", "two experts"])
def test_other_parts_are_called_one_by_one(tmp_path: Path, why: str) -> None:
    path = packed_model(tmp_path)
    options: dict[str, dict[str, Any]] = {
        "local experts": {"experts": build_local_experts},
        "deferral": {"defer": 1},
        "a dense matrix": {"choices": {"model.layers.1.self_attn.o_proj": Choice(1, "dense")}},
        "two experts": {"experts": _one_each},
    }
    model, spec, _ = build(path, **options[why])
    assert model._native is None
    assert model.forward(make_batch((2,)), make_cache(spec)).logits.isfinite().all()


def test_no_layers_are_no_kernel() -> None:
    assert native_layers([]) is None
    with pytest.raises(KernelError, match="need at least one"):
        trimaran_kernels.Decoder([])


def test_a_missing_layer_is_refused() -> None:
    with pytest.raises(KernelError, match="layers: one is missing"):
        trimaran_kernels.Decoder([None])  # type: ignore[list-item]


def test_experts_for_another_gate_are_refused(tmp_path: Path) -> None:
    model, spec, here = build(packed_model(tmp_path))
    pool = trimaran_kernels.ThreadPool(trimaran_kernels.usable_cpus(1))
    moe = spec.moe
    dims = (spec.hidden_size, moe.intermediate_size, moe.n_experts, moe.top_k + 1)
    other = CallGate(trimaran_kernels.ExpertEngine(pool, *dims), gathers=False, rests=False)
    here._calls = other
    with pytest.raises(KernelError, match=f"take {moe.top_k + 1} of a token, the gate gives {moe.top_k}"):
        model.forward(make_batch((1,)), make_cache(spec))


def _one_each(site: Site) -> ExpertsHere:
    pool = trimaran_kernels.ThreadPool(trimaran_kernels.usable_cpus(1))
    return ExpertsHere(pool, "auto", packs=True, max_tokens=16).take(site)
