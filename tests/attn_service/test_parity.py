"""Our forward pass against transformers' in float32, for every shape, layout and several mixes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel
from trimaran.synth import SHAPES, write_random_model
from trimaran.wire import Generate, SamplingParams, TokenBatch
from trimaran_attn.request import Request
from trimaran_attn.runner import make_batch
from trimaran_attn.scheduler import Chunk, StepPlan

CPU = torch.device("cpu")
TOLERANCE = 1e-3
LENGTH = 150  # three pages, and beyond the original context of the shapes with YaRN
MIXES = ("Q8_0", "F32", "Q5_0", "Q4_1", "BF16")  # quick to write; K-quants take seconds a model
MODELS = [(shape, layout) for shape in SHAPES for layout in ("kv_b", "split")]
CASES = [(*model, MIXES[number % len(MIXES)]) for number, model in enumerate(MODELS)]
CASES[MODELS.index(("v3", "split"))] = ("v3", "split", "Q4_K_M")


class Model:
    """A random model in a file, ours and the reference."""

    def __init__(self, path: Path, lab: Any, reference: PreTrainedModel) -> None:
        self.path = path
        self.lab = lab
        self.reference = reference

    def prompt(self, seed: int, length: int = LENGTH) -> list[int]:
        ids: list[int] = np.random.default_rng(seed).integers(0, self.lab.spec.vocab_size, length).tolist()
        return ids

    def expected(self, ids: list[int]) -> Tensor:
        with torch.no_grad():
            logits: Tensor = self.reference(torch.tensor([ids])).logits[0]
        return logits

    def run(self, *chunks: tuple[Request, int, int], lab: Any = None) -> Tensor:
        """Logits of all rows of one step over (request, start, length)."""
        lab = lab or self.lab
        batch = make_batch(StepPlan(tuple(Chunk(*chunk) for chunk in chunks)), CPU)
        rows = torch.arange(len(batch.token_ids))
        logits: Tensor = lab.model.forward(replace(batch, sampled_rows=rows), lab.cache).logits
        return logits


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def model(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    build_lab: Callable[..., Any],
    build_reference: Callable[[Path], PreTrainedModel],
) -> Model:
    shape, layout, mix = request.param
    path = tmp_path_factory.mktemp("model") / "model.gguf"
    write_random_model(path, shape, layout=layout, mix=mix, seed=3, tokenizer=False)
    return Model(path, build_lab(path), build_reference(path))


def make_request(name: str, ids: list[int], pages: list[int]) -> Request:
    return Request(name, ids, SamplingParams(), max_tokens=8, pages=pages)


def assert_close(logits: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    """Within the tolerance relative to the reference's size, in norm and at the worst place."""
    error = logits - expected
    assert float(error.norm() / expected.norm()) < tolerance
    assert float(error.abs().max() / expected.abs().max()) < tolerance


def test_prefill_and_decode_give_the_references_logits(model: Model) -> None:
    ids = model.prompt(1)
    expected = model.expected(ids)
    request = make_request("r", ids, [5, 6, 2])  # pages in disorder
    assert_close(model.run((request, 0, LENGTH)), expected)
    chunked = [model.run((request, start, 30)) for start in range(0, LENGTH, 30)]
    assert_close(torch.cat(chunked), expected)
    one_by_one = [model.run((request, position, 1)) for position in range(40)]
    assert_close(torch.cat(one_by_one), expected[:40])


def test_a_mixed_batch_gives_each_request_its_own_logits(model: Model) -> None:
    """Two streams, a prompt's later chunk and a new prompt in one step."""
    requests = [make_request(str(i), model.prompt(i), [4 * i, 4 * i + 3, 4 * i + 1]) for i in range(4)]
    expected = [model.expected(list(request.prompt_ids)) for request in requests]
    model.run((requests[0], 0, 70), (requests[1], 0, 130), (requests[2], 0, 40))
    plan = [(requests[0], 70, 1), (requests[1], 130, 1), (requests[2], 40, 50), (requests[3], 0, 33)]
    logits = model.run(*plan).split([length for _, _, length in plan])
    for (request, start, length), rows in zip(plan, logits, strict=True):
        assert_close(rows, expected[int(request.request_id)][start : start + length])


def test_greedy_continuations_of_64_tokens_are_identical(model: Model) -> None:
    """Three requests of different lengths at once, prompts cut in chunks beside the streams."""
    engine = model.lab.engine(max_step_tokens=24)
    prompts = {str(i): model.prompt(10 + i, length) for i, length in enumerate((1, 17, 90))}
    outputs: dict[str, list[int]] = {name: [] for name in prompts}
    for name, ids in prompts.items():
        sampling = SamplingParams(temperature=0.0, max_tokens=64)
        assert engine.submit(Generate(request_id=name, prompt_ids=ids, sampling=sampling)) is None
    while engine.has_work:
        for event in engine.step():
            assert isinstance(event, TokenBatch)
            outputs[event.request_id] += event.ids
    for name, ids in prompts.items():
        # Where each token is the reference's best after all before it, its own continuation is the same.
        best = model.expected(ids + outputs[name]).argmax(-1).tolist()
        assert outputs[name] == best[len(ids) - 1 : -1]
        assert len(outputs[name]) == 64


def test_naive_absorbed_dense_and_quantised_agree(model: Model, build_lab: Callable[..., Any]) -> None:
    request = make_request("r", model.prompt(5), [0, 1, 2])
    results = []
    for options in ({"mla": "naive"}, {"mla": "absorbed"}, {"linears": "dense"}):
        lab = build_lab(model.path, **options)
        parts = [model.run((request, 0, 100), lab=lab), model.run((request, 100, 50), lab=lab)]
        results.append(torch.cat(parts))
    for other in results[1:]:
        assert_close(other, results[0], 1e-5)


def test_a_request_has_the_same_logits_alone_and_in_a_batch(model: Model) -> None:
    mine, other = make_request("a", model.prompt(6), [0, 1, 2]), make_request("b", model.prompt(7), [3, 4, 5])
    alone = [model.run((mine, 0, 64)), model.run((mine, 64, 1))]
    together = [
        model.run((other, 0, 100), (mine, 0, 64))[100:],
        model.run((other, 100, 20), (mine, 64, 1))[20:],
    ]
    for a, b in zip(alone, together, strict=True):
        assert_close(a, b, 1e-5)


@pytest.mark.parametrize("mla", ["naive", "absorbed"])
def test_bfloat16_throughout_as_on_a_gpu_stays_close(
    model: Model, build_lab: Callable[..., Any], mla: str
) -> None:
    """Median error over positions: where a gate's near tie flips, a token takes other experts."""
    request, bf16 = make_request("r", model.prompt(9), [0, 1, 2]), torch.bfloat16
    lab = build_lab(model.path, mla=mla, linears="dense", dtype=bf16, kv="bf16")
    exact = model.run((request, 0, LENGTH))
    rounded = model.run((request, 0, LENGTH), lab=lab)
    errors = (exact - rounded).norm(dim=-1) / exact.norm(dim=-1)
    assert 0 < float(errors.median()) < 0.05


def test_a_bfloat16_cache_costs_little(model: Model, build_lab: Callable[..., Any]) -> None:
    request = make_request("r", model.prompt(8), [0, 1, 2])
    lab = build_lab(model.path, kv="bf16")
    exact = model.run((request, 0, LENGTH))
    rounded = model.run((request, 0, LENGTH), lab=lab)
    assert 0 < float((exact - rounded).norm() / exact.norm()) < 0.05


@pytest.mark.parametrize("kv", ["fp8", "int8"])
def test_an_8_bit_cache_costs_what_is_stated(model: Model, build_lab: Callable[..., Any], kv: str) -> None:
    """Median error over positions, as above."""
    request = make_request("r", model.prompt(8), [0, 1, 2])
    exact = model.run((request, 0, LENGTH))
    rounded = model.run((request, 0, LENGTH), lab=build_lab(model.path, kv=kv))
    errors = (exact - rounded).norm(dim=-1) / exact.norm(dim=-1)
    assert 0 < float(errors.median()) < (0.05 if kv == "fp8" else 0.02)


def test_maps_in_16_bits_cost_next_to_nothing(model: Model, build_lab: Callable[..., Any]) -> None:
    request = make_request("r", model.prompt(8), [0, 1, 2])
    exact = model.run((request, 0, LENGTH))
    rounded = model.run((request, 0, LENGTH), lab=build_lab(model.path, exact_maps=False))
    errors = (exact - rounded).norm(dim=-1) / exact.norm(dim=-1)
    assert float(errors.median()) < 2e-3


@pytest.mark.parametrize("mla", ["naive", "absorbed", "auto"])
def test_the_kernels_follow_the_torch_reference(
    model: Model, build_lab: Callable[..., Any], mla: str
) -> None:
    ids = model.prompt(11)
    labs = [build_lab(model.path, mla=mla, native=native) for native in (True, False)]
    requests = [make_request("r", ids, pages) for pages in ([5, 6, 2], [1, 2, 3])]
    results = []
    for lab, request in zip(labs, requests, strict=True):
        model.run((request, 0, 100), lab=lab)
        results.append(model.run((request, 100, 50), lab=lab))
    assert_close(results[0], results[1])
