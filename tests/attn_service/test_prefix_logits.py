"""A cached prompt gives the same logits as an uncached one, on a model with random weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from trimaran.synth import write_random_model
from trimaran.wire import Generate, SamplingParams, TokenBatch, Usage
from trimaran_attn.engine import Engine
from trimaran_attn.kv_cache import PAGE_SIZE, LatentCache
from trimaran_attn.pages import PageAllocator
from trimaran_attn.runner import Runner, StepOutput
from trimaran_attn.scheduler import Limits, Scheduler, StepPlan

CPU = torch.device("cpu")


class WatchedRunner(Runner):
    """Remembers the logits that each request was drawn from."""

    def __init__(self, lab: Any, n_pages: int) -> None:
        super().__init__(lab.model, LatentCache(lab.spec, n_pages, CPU, "f32"), CPU)
        self.logits: dict[str, list[Tensor]] = {}

    def run(self, plan: StepPlan) -> StepOutput:
        output = super().run(plan)
        sampled = [chunk.request.request_id for chunk in plan.chunks if chunk.samples]
        for name, row in zip(sampled, output.logits, strict=True):
            self.logits.setdefault(name, []).append(row)
        return output


class Bench:
    """One engine over the model, and what its requests got."""

    def __init__(self, lab: Any, *, prefix_cache: bool = True, n_pages: int = 16) -> None:
        limits = Limits(
            context_length=8 * PAGE_SIZE,
            max_running=4,
            max_waiting=16,
            max_step_tokens=96,
            page_size=PAGE_SIZE,
        )
        self.runner = WatchedRunner(lab, n_pages)
        self.scheduler = Scheduler(limits, PageAllocator(n_pages), prefix_cache=prefix_cache)
        self.engine = Engine(self.scheduler, self.runner, lab.spec.vocab_size)
        self.ids: dict[str, list[int]] = {}
        self.usage: dict[str, Usage] = {}

    def ask(self, name: str, prompt: list[int], max_tokens: int = 12) -> None:
        sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens)
        assert self.engine.submit(Generate(request_id=name, prompt_ids=prompt, sampling=sampling)) is None

    def step(self) -> None:
        for event in self.engine.step():
            assert isinstance(event, TokenBatch)
            self.ids.setdefault(event.request_id, []).extend(event.ids)
            if event.usage is not None:
                self.usage[event.request_id] = event.usage

    def finish(self) -> None:
        while self.engine.has_work:
            self.step()

    def serve(self, name: str, prompt: list[int], max_tokens: int = 12) -> int:
        """Answer one request alone; how many tokens were cached."""
        self.ask(name, prompt, max_tokens)
        self.finish()
        return self.usage[name].cached_tokens


def assert_same(name: str, bench: Bench, reference: Bench) -> None:
    assert bench.ids[name] == reference.ids[name]
    ours, theirs = torch.stack(bench.runner.logits[name]), torch.stack(reference.runner.logits[name])
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


@pytest.fixture(scope="module", params=["naive", "absorbed"])
def lab(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    build_lab: Callable[..., Any],
) -> Any:
    path: Path = tmp_path_factory.mktemp("model") / "model.gguf"
    write_random_model(path, "v3", mix="F32", seed=5, tokenizer=False)
    return build_lab(path, mla=request.param)


def prompt_of(lab: Any, length: int, seed: int = 1) -> list[int]:
    ids: list[int] = np.random.default_rng(seed).integers(0, lab.spec.vocab_size, length).tolist()
    return ids


@pytest.mark.parametrize(
    ("length", "cached"),
    [
        (200, 192),  # whole pages and a part of one
        (193, 192),  # all but the last token
        (192, 128),  # the whole prompt is known, and its last token computed again
        (100, 64),
    ],
)
def test_hits_of_every_kind_give_the_same_logits(lab: Any, length: int, cached: int) -> None:
    prompt = prompt_of(lab, 200)
    reference = Bench(lab, prefix_cache=False)
    assert reference.serve("again", prompt[:length]) == 0
    bench = Bench(lab)
    assert bench.serve("first", prompt) == 0
    assert bench.serve("again", prompt[:length]) == cached
    assert_same("again", bench, reference)


def test_turns_of_a_chat_find_all_that_was_said(lab: Any) -> None:
    bench, reference = Bench(lab), Bench(lab, prefix_cache=False)
    history, n_known = prompt_of(lab, 60), 0
    for turn in range(4):
        name = f"turn {turn}"
        reference.serve(name, history, 20)
        assert bench.serve(name, history, 20) == n_known // PAGE_SIZE * PAGE_SIZE
        assert_same(name, bench, reference)
        n_known = len(history) + 20 - 1  # the last token was drawn, but not computed
        history = history + bench.ids[name] + prompt_of(lab, 25, seed=turn + 10)
    counters = bench.engine.stats().counters
    assert counters["prompt_tokens_cached_total"] == counters["prefix_cache_hits_total"] > 0
    assert counters["prefix_cache_queries_total"] == counters["prompt_tokens_total"]
    assert bench.engine.stats().gauges["kv_cache_usage_perc"] == 0


def test_answers_to_one_prompt_share_its_pages(lab: Any) -> None:
    prompt = prompt_of(lab, 150)
    reference = Bench(lab, prefix_cache=False)
    reference.serve("0", prompt)
    bench = Bench(lab)
    for name in "012":
        bench.ask(name, prompt)
    for _ in range(3):
        bench.step()
    assert bench.engine.stats().gauges["kv_cache_usage_perc"] == pytest.approx((2 + 3) / 16)
    bench.finish()
    assert [bench.usage[name].cached_tokens for name in "012"] == [0, 128, 128]
    for name in "12":
        reference.serve(name, prompt)
        assert_same(name, bench, reference)


def test_after_eviction_the_rest_of_a_chain_is_used(lab: Any) -> None:
    prompt, other = prompt_of(lab, 300), prompt_of(lab, 390, seed=2)
    reference = Bench(lab, prefix_cache=False)
    reference.serve("again", prompt)
    bench = Bench(lab, n_pages=9)
    bench.serve("first", prompt)
    bench.serve("other", other)  # 7 pages: 5 free ones, and the last 2 of the first's
    assert bench.serve("again", prompt) == 128
    assert_same("again", bench, reference)


def test_a_preempted_request_goes_on_with_the_same_logits(lab: Any) -> None:
    prompts = {"0": prompt_of(lab, 250), "1": prompt_of(lab, 250, seed=2)}
    reference = Bench(lab, prefix_cache=False)
    bench = Bench(lab, n_pages=9)
    for name, prompt in prompts.items():
        reference.serve(name, prompt, 20)
        bench.ask(name, prompt, 20)
    bench.finish()
    assert bench.scheduler.counters.preemptions >= 1
    assert bench.usage["1"].cached_tokens == 0
    for name in prompts:
        assert_same(name, bench, reference)
