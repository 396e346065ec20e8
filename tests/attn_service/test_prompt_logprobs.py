"""A prompt's log probabilities are the model's own, however the prompt is cut, cached or computed again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from trimaran.synth import write_random_model
from trimaran.wire import Generate, SamplingParams, TokenBatch, TokenLogprob
from trimaran_attn.engine import Engine
from trimaran_attn.model.scoring import ROWS_AT_ONCE
from trimaran_attn.request import Request
from trimaran_attn.runner import make_batch
from trimaran_attn.scheduler import Chunk, StepPlan

PROMPT = [(7 * i * i + 3 * i) % 250 for i in range(150)]
TOP = 3
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, build_lab: Callable[..., Any]) -> Any:
    path: Path = tmp_path_factory.mktemp("model") / "model.gguf"
    return build_lab(write_random_model(path, "v3", seed=5, tokenizer=False))


@pytest.fixture(scope="module")
def expected(lab: Any) -> torch.Tensor:
    """[prompt - 1, vocab], from the logits of all rows at once."""
    request = Request("r", PROMPT, SamplingParams(), 1, pages=[0, 1, 2])
    batch = make_batch(StepPlan((Chunk(request, 0, len(PROMPT)),)), CPU)
    logits: torch.Tensor = lab.model.forward(
        replace(batch, sampled_rows=torch.arange(len(PROMPT) - 1)), lab.cache
    ).logits
    return logits.log_softmax(-1)


def submit(engine: Engine, name: str, prompt: list[int], **sampling: Any) -> None:
    params = SamplingParams(temperature=0.0, **sampling)
    assert engine.submit(Generate(request_id=name, prompt_ids=prompt, sampling=params)) is None


def ask(engine: Engine, prompt: list[int], **sampling: Any) -> list[TokenBatch]:
    submit(engine, "r", prompt, **sampling)
    batches = []
    while engine.has_work:
        batches += [event for event in engine.step() if isinstance(event, TokenBatch)]
    return batches


def scores_of(batches: list[TokenBatch]) -> list[TokenLogprob]:
    return [score for batch in batches for score in batch.prompt_logprobs or []]


def check(scores: list[TokenLogprob], expected: torch.Tensor) -> None:
    assert len(scores) == len(PROMPT) - 1
    for score, row, token in zip(scores, expected, PROMPT[1:], strict=True):
        values, ids = row.topk(TOP)
        assert [token for token, _ in score.top] == ids.tolist()
        assert [value for _, value in score.top] == pytest.approx(values.tolist(), abs=2e-4)
        assert score.logprob == pytest.approx(float(row[token]), abs=2e-4)


@pytest.mark.parametrize("budget", [7, ROWS_AT_ONCE + 1, 512])
def test_chunks_of_any_size(lab: Any, expected: torch.Tensor, budget: int) -> None:
    batches = ask(lab.engine(max_step_tokens=budget), PROMPT, max_tokens=2, prompt_logprobs=TOP)
    check(scores_of(batches), expected)
    first = next(i for i, batch in enumerate(batches) if batch.ids)
    assert not scores_of(batches[first + 1 :]), "all come before the first token"


def test_cached_prompts_are_scored_whole(lab: Any, expected: torch.Tensor) -> None:
    engine = lab.engine()
    plain = ask(engine, PROMPT, max_tokens=3)
    batches = ask(engine, PROMPT, max_tokens=3, prompt_logprobs=TOP)
    check(scores_of(batches), expected)
    assert [b.ids for b in batches if b.ids] == [b.ids for b in plain]
    usage = ask(engine, PROMPT, max_tokens=3)[-1].usage
    assert usage is not None
    assert usage.cached_tokens == 128


def test_a_preempted_request_says_each_score_once(lab: Any, expected: torch.Tensor) -> None:
    engine = lab.engine(max_step_tokens=50)
    submit(engine, "r", PROMPT, max_tokens=5, prompt_logprobs=TOP)
    batches = engine.step() + engine.step()
    (request,) = engine.scheduler.running
    engine.scheduler._preempt(request)
    while engine.has_work:
        batches += engine.step()
    check(scores_of([b for b in batches if isinstance(b, TokenBatch)]), expected)


def test_one_token_follows_nothing(lab: Any) -> None:
    assert scores_of(ask(lab.engine(), PROMPT[:1], max_tokens=1, prompt_logprobs=TOP)) == []


@pytest.mark.parametrize("count", [-1, 101])
def test_bad_counts_are_refused(lab: Any, count: int) -> None:
    params = SamplingParams(prompt_logprobs=count)
    failed = lab.engine().submit(Generate(request_id="r", prompt_ids=[1], sampling=params))
    assert failed is not None
    assert (failed.code, failed.param) == ("invalid_request", "prompt_logprobs")
