"""A step that is cut in parts gives the same logits, with several calls under way at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from trimaran.synth import write_random_model
from trimaran.wire import SamplingParams
from trimaran_attn.kv_cache import PAGE_SIZE
from trimaran_attn.model.batch import Batch, split_batch
from trimaran_attn.model.deepseek2 import ForwardOptions
from trimaran_attn.request import Request
from trimaran_attn.runner import make_batch
from trimaran_attn.scheduler import Chunk, StepPlan

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, build_lab: Callable[..., Any]) -> Any:
    path: Path = tmp_path_factory.mktemp("model") / "model.gguf"
    return build_lab(write_random_model(path, "v3", mix="Q4_K_M", seed=5, tokenizer=False))


def make_chunk(first_page: int, start: int, length: int) -> Chunk:
    ids = [(7 * i * i + first_page) % 250 for i in range(start + length)]
    pages = list(range(first_page, first_page + -(-(start + length) // PAGE_SIZE)))
    return Chunk(Request(str(first_page), ids, SamplingParams(), 9, pages=pages), start, length)


def mixed_batch() -> Batch:
    """Two streams, and a prompt that most cuts go through."""
    chunks = (make_chunk(0, 40, 1), make_chunk(1, 70, 1), make_chunk(3, 0, 30))
    return make_batch(StepPlan(chunks), CPU)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 100])
def test_parts_hold_every_token_once_in_order(count: int) -> None:
    batch = mixed_batch()
    parts = split_batch(batch, count)
    assert len(parts) == min(count, 32)
    for name in ("token_ids", "positions", "slots"):
        whole = torch.cat([getattr(part, name) for part in parts])
        assert torch.equal(whole, getattr(batch, name))
    for part in parts:
        rows = [row for s in part.segments for row in range(s.rows.start, s.rows.stop)]
        assert rows == list(range(len(part.token_ids)))
        for segment in part.segments:
            assert int(part.positions[segment.rows.start]) == segment.position
    assert max(len(part.token_ids) for part in parts) - min(len(part.token_ids) for part in parts) <= 1


def forward(lab: Any, count: int) -> Tensor:
    """All logits after some history is in the cache."""
    lab.model._options = ForwardOptions(count)
    history = (make_chunk(0, 0, 40), make_chunk(1, 0, 70))
    lab.model.forward(make_batch(StepPlan(history), CPU), lab.cache)
    batch = mixed_batch()
    logits: Tensor = lab.model.forward(replace(batch, sampled_rows=torch.arange(32)), lab.cache).logits
    return logits


@pytest.mark.parametrize("count", [2, 3, 4])
def test_the_logits_are_the_same(lab: Any, count: int) -> None:
    whole, parts = forward(lab, 1), forward(lab, count)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-6 * float(whole.abs().max()))
    assert torch.equal(parts.argmax(-1), whole.argmax(-1))


class CountingExperts:
    """Passes calls on, and knows how many are under way."""

    def __init__(self, experts: Any, counter: list[int]) -> None:
        self._experts = experts
        self._counter = counter

    def submit(self, *arguments: Any) -> Any:
        self._counter[0] += 1
        self._counter[1] = max(self._counter)
        return self._experts.submit(*arguments)

    def wait(self, ticket: Any) -> Tensor:
        self._counter[0] -= 1
        result: Tensor = self._experts.wait(ticket)
        return result


@pytest.mark.parametrize("count", [1, 2, 3])
def test_calls_of_all_parts_are_under_way_together(
    lab: Any, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = [0, 0]
    for layer in lab.model._layers[lab.spec.n_dense_layers :]:
        moe = layer.feed_forward
        monkeypatch.setattr(moe, "_experts", CountingExperts(moe._experts, counter))
    forward(lab, count)
    assert counter == [0, count]
