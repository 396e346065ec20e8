"""Deferred experts against a forward pass that goes through them one by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import linear, silu
from trimaran.errors import ConfigError
from trimaran.synth import random_spec, write_random_model
from trimaran.timeline import Tracer
from trimaran.wire import SamplingParams
from trimaran_attn.experts import SKIPPED
from trimaran_attn.model.deepseek2 import ForwardOptions
from trimaran_attn.model.deferral import check_deferral, deferred_by, split_lightest
from trimaran_attn.model.moe import MoE
from trimaran_attn.model.step import Step
from trimaran_attn.request import Request
from trimaran_attn.runner import make_batch
from trimaran_attn.scheduler import Chunk, StepPlan

CPU = torch.device("cpu")
SPEC = random_spec("v3")
LENGTH = 40


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.gguf"
    return write_random_model(path, "v3", mix="Q4_K_M", seed=5, tokenizer=False)


@pytest.fixture(scope="module", params=range(SPEC.moe.top_k))
def lab(request: pytest.FixtureRequest, path: Path, build_lab: Callable[..., Any]) -> Any:
    return build_lab(path, mla="absorbed", defer_experts=request.param)


def chunk(start: int, stop: int) -> Chunk:
    ids = [(7 * i * i) % 250 for i in range(LENGTH)]
    return Chunk(Request("r", ids, SamplingParams(), 9, pages=[3]), start, stop - start)


def forward(lab: Any, *borders: int, parts: int = 1) -> Tensor:
    """Logits of all tokens, computed in steps from border to border."""
    lab.model._options = ForwardOptions(parts)
    rows = []
    for start, stop in pairwise(borders):
        batch = make_batch(StepPlan((chunk(start, stop),)), CPU)
        batch = replace(batch, sampled_rows=torch.arange(stop - start))
        rows.append(lab.model.forward(batch, lab.cache).logits)
    return torch.cat(rows)


def slow_forward(lab: Any, defer: int) -> Tensor:
    """Straight from the definition in docs/deferral.md: token by token, expert by expert."""
    model, spec = lab.model, lab.spec
    batch = make_batch(StepPlan((chunk(0, LENGTH),)), CPU)
    step = Step(batch, *model._ropes[0].angles(batch.positions), lab.cache, Tracer())
    x = model._embedding(batch.token_ids)
    deferred = torch.zeros_like(x)
    for layer in model._layers:
        x = x + layer.attention(layer.input_norm(x), step)
        u = layer.post_attention_norm(x)
        if layer.index < spec.n_dense_layers:
            x = x + layer.feed_forward(u)
            continue
        last = layer.index == spec.n_layers - 1
        now, later = weigh_experts(layer.feed_forward, u, 0 if last else defer)
        x = x + deferred + now + layer.feed_forward._shared(u)
        deferred = later
    assert not deferred.any()
    return model._logits(x)


def weigh_experts(moe: Any, u: Tensor, defer: int) -> tuple[Tensor, Tensor]:
    """Sums of the experts that count now, and of the lightest ones."""
    sums = torch.zeros(2, *u.shape)
    for token, (ids, weights) in enumerate(zip(*moe._gate(u), strict=True)):
        chosen = sorted(zip(weights.tolist(), ids.tolist(), strict=True), reverse=True)
        for rank, (weight, expert) in enumerate(chosen):
            gate, up, down = (
                matrix[expert] for matrix in (moe._experts._gate, moe._experts._up, moe._experts._down)
            )
            hidden = silu(linear(u[token], gate)) * linear(u[token], up)
            sums[int(rank >= len(chosen) - defer), token] += weight * linear(hidden, down)
    return sums[0], sums[1]


def test_the_logits_are_those_of_the_definition(lab: Any) -> None:
    defer = lab.defer_experts
    wanted, got = slow_forward(lab, defer), forward(lab, 0, LENGTH)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))
    if defer:
        plain = slow_forward(lab, 0)
        assert float((plain - wanted).norm() / plain.norm()) > 1e-3, "deferral changes nothing: no test"


class RowByRow:
    """A layer's experts, asked for each token alone: the reference rounds by the number of rows."""

    def __init__(self, experts: Any) -> None:
        self._experts = experts

    def submit(self, layer: int, *rows: Tensor) -> Tensor:
        tokens = [[part[None] for part in row] for row in zip(*rows, strict=True)]
        return torch.cat([self._experts.submit(layer, *token) for token in tokens])

    def wait(self, ticket: Tensor) -> Tensor:
        return ticket


def test_a_tokens_logits_depend_on_its_tokens_only(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """However the tokens come: at once, in chunks, one by one, or in parts."""
    for layer in lab.model._layers[lab.spec.n_dense_layers :]:
        monkeypatch.setattr(layer.feed_forward, "_experts", RowByRow(layer.feed_forward._experts))
    whole = forward(lab, 0, LENGTH)
    assert torch.equal(forward(lab, 0, 7, 39, LENGTH), whole)
    assert torch.equal(forward(lab, *range(LENGTH + 1)), whole)
    for parts in (2, 3):
        assert torch.equal(forward(lab, 0, LENGTH, parts=parts), whole)


class Recorder:
    """Stands before a layer's experts and writes down what is asked of them."""

    def __init__(self, experts: Any, events: list[tuple[str, int, int]]) -> None:
        self._experts = experts
        self._events = events

    def submit(self, layer: int, x: Tensor, ids: Tensor, weights: Tensor) -> Any:
        n_chosen = int((ids != SKIPPED).sum(1).unique())
        self._events.append(("submit", layer, n_chosen))
        return layer, n_chosen, self._experts.submit(layer, x, ids, weights)

    def wait(self, ticket: Any) -> Tensor:
        layer, n_chosen, inner = ticket
        self._events.append(("wait", layer, n_chosen))
        answer: Tensor = self._experts.wait(inner)
        return answer


def test_deferred_experts_have_a_layers_time(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[tuple[str, int, int]] = []
    for layer in lab.model._layers[lab.spec.n_dense_layers :]:
        moe = layer.feed_forward
        monkeypatch.setattr(moe, "_experts", Recorder(moe._experts, events))
    forward(lab, 0, 5)
    first, last, top_k = lab.spec.n_dense_layers, lab.spec.n_layers - 1, lab.spec.moe.top_k
    wanted = []
    defer = lab.defer_experts
    for layer in range(first, last + 1):
        count = 0 if layer == last else defer
        wanted.append(("submit", layer, top_k - count))
        wanted += [("submit", layer, count)] * bool(count)
        wanted.append(("wait", layer, top_k - count))
        wanted += [("wait", layer - 1, defer)] * (bool(defer) and layer > first)
    assert events == wanted


def test_the_last_layer_and_dense_ones_defer_nothing() -> None:
    assert [deferred_by(SPEC, layer, 2) for layer in range(SPEC.n_layers)] == [
        0 if layer < SPEC.n_dense_layers or layer == SPEC.n_layers - 1 else 2
        for layer in range(SPEC.n_layers)
    ]


def test_deferring_all_experts_is_refused(path: Path) -> None:
    check_deferral(SPEC, SPEC.moe.top_k - 1)
    with pytest.raises(ConfigError, match=rf"attn.defer_experts is {SPEC.moe.top_k}, but .* uses"):
        check_deferral(SPEC, SPEC.moe.top_k)


@given(
    st.lists(st.lists(st.floats(0, 1, width=32), min_size=4, max_size=4), min_size=1, max_size=5),
    st.integers(0, 3),
)
def test_the_lightest_are_split_off(rows: list[list[float]], count: int) -> None:
    weights = torch.tensor(rows)
    ids = torch.arange(len(rows) * 4, dtype=torch.int32).view(-1, 4)
    now, later = split_lightest(ids, weights, count)
    assert torch.equal(torch.maximum(now, later), ids)
    assert torch.equal((later != SKIPPED).sum(1), torch.full((len(rows),), count))
    assert torch.equal((now == SKIPPED), (later != SKIPPED))
    for row, deferred in zip(rows, (later != SKIPPED).tolist(), strict=True):
        kept = [(-weight, place) for place, weight in enumerate(row) if not deferred[place]]
        light = [(-weight, place) for place, weight in enumerate(row) if deferred[place]]
        assert not light or max(kept) < min(light)


def test_a_moe_layer_is_what_defers(lab: Any) -> None:
    networks = [layer.feed_forward for layer in lab.model._layers]
    deferring = [
        index for index, network in enumerate(networks) if isinstance(network, MoE) and network._defer
    ]
    wanted = range(lab.spec.n_dense_layers, lab.spec.n_layers - 1) if lab.defer_experts else range(0)
    assert deferring == list(wanted)
