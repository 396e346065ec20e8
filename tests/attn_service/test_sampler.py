from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from trimaran.errors import RequestError
from trimaran.wire import SamplingParams
from trimaran_attn.sampler import Sampler
from trimaran_attn.sampling_params import check_sampling

VOCAB = 16


def make_sampler(prompt: tuple[int, ...] = (), stop: tuple[int, ...] = (), **params: object) -> Sampler:
    return Sampler(SamplingParams(**params), prompt, stop)  # type: ignore[arg-type]


def make_logits(seed: int = 0, n: int = VOCAB) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed)) * 2


def support(draws: int = 400, logits: torch.Tensor | None = None, **params: Any) -> Counter[int]:
    logits = make_logits() if logits is None else logits
    sampler = make_sampler(seed=1, **params)
    return Counter(sampler.draw(logits).token for _ in range(draws))


def test_temperature_zero_is_greedy() -> None:
    logits = make_logits()
    sampler = make_sampler(temperature=0.0)
    assert {sampler.draw(logits).token for _ in range(5)} == {int(logits.argmax())}


def test_draws_follow_the_distribution() -> None:
    logits, draws = make_logits(), 5_000
    counts = support(draws, temperature=0.7)
    expected = (logits / 0.7).softmax(0)
    for token in range(VOCAB):
        probability = float(expected[token])
        spread = math.sqrt(probability * (1 - probability) / draws)
        assert abs(counts[token] / draws - probability) < 5 * spread + 1e-4


def test_a_tiny_temperature_draws_the_best_token() -> None:
    assert set(support(50, temperature=1e-6)) == {int(make_logits().argmax())}


def test_top_k_keeps_the_k_best() -> None:
    assert set(support(top_k=3)) == set(make_logits().topk(3).indices.tolist())
    assert set(support(200, top_k=1000)) <= set(range(VOCAB))


def test_top_p_keeps_the_smallest_set_with_that_mass() -> None:
    probabilities, ids = make_logits().softmax(0).sort(descending=True)
    kept = set(ids[: int((probabilities.cumsum(0) < 0.8).sum()) + 1].tolist())
    assert set(support(2000, top_p=0.8)) == kept
    assert set(support(20, top_p=1e-9)) == {int(ids[0])}


def test_min_p_drops_what_is_unlikely_beside_the_best() -> None:
    probabilities = make_logits().softmax(0)
    kept = {i for i in range(VOCAB) if probabilities[i] >= 0.2 * probabilities.max()}
    assert set(support(2000, min_p=0.2)) == kept


@pytest.mark.parametrize("params", [{"top_p": 0.9999}, {"min_p": 1e-5}, {"top_p": 0.5, "min_p": 0.9}])
def test_a_flat_vocabulary_larger_than_the_first_guess(params: dict[str, float]) -> None:
    tokens = support(400, logits=make_logits(n=2500) * 0.01, **params)
    assert max(tokens) > 2000
    assert len(tokens) > 300


def test_a_seed_gives_the_same_tokens_again_and_another_seed_others() -> None:
    logits = [make_logits(i) for i in range(30)]
    runs = []
    for seed in (5, 5, 6, -5):
        sampler = make_sampler(seed=seed)
        runs.append([sampler.draw(row).token for row in logits])
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]
    assert runs[0] != runs[3]
    assert make_sampler()._seed != make_sampler()._seed


def test_penalties_follow_their_definitions() -> None:
    logits = torch.tensor([2.0, 1.9, -1.0, 0.5])
    # 0 occurred in the prompt: 2.0 / 1.5 < 1.9; 1 was drawn: 1.9 / 1.5 = 1.27 < 1.33
    sampler = make_sampler(prompt=(0,), temperature=0.0, repetition_penalty=1.5)
    assert [sampler.draw(logits).token for _ in range(3)] == [1, 0, 0]
    # frequency: 0 falls by 0.3 a draw: 2.0, 1.7 < 1.9, then 1.6 < 1.7
    sampler = make_sampler(prompt=(0,), temperature=0.0, frequency_penalty=0.3)
    assert [sampler.draw(logits).token for _ in range(4)] == [0, 1, 0, 1]
    # presence: once only
    sampler = make_sampler(temperature=0.0, presence_penalty=0.2)
    assert [sampler.draw(logits).token for _ in range(4)] == [0, 1, 0, 0]
    # negative logits are multiplied
    sampler = make_sampler(prompt=(0,), temperature=0.0, repetition_penalty=2.0)
    assert sampler.draw(torch.tensor([-1.0, -1.5])).token == 1


def test_logit_bias_is_added() -> None:
    logits = make_logits()
    sampler = make_sampler(temperature=0.0, logit_bias={3: 100.0, int(logits.argmax()): -100.0})
    before = logits.clone()
    assert sampler.draw(logits).token == 3
    assert torch.equal(logits, before)


@pytest.mark.parametrize("params", [{"temperature": 0.0}, {}, {"top_p": 0.5}])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nothing_is_drawn_from_what_is_not_finite(params: dict[str, float], value: float) -> None:
    sampler = make_sampler(logit_bias={3: value}, **params)
    with pytest.raises(ArithmeticError, match="adjusted logit"):
        sampler.draw(make_logits())
    assert sampler.n_drawn == 0


def test_the_strongest_penalties_still_draw_a_token() -> None:
    params = {"repetition_penalty": 0.01, "frequency_penalty": 100.0, "logit_bias": {3: -100.0, 4: 100.0}}
    check_sampling(SamplingParams(**params), VOCAB)  # type: ignore[arg-type]
    assert max(support(50, prompt=tuple(range(VOCAB)), **params)) < VOCAB


def test_a_stop_id_is_drawn_early_where_a_grammar_allows_nothing_else() -> None:
    logits, stop = make_logits(), int(make_logits().argmin())
    masked = torch.full_like(logits, -torch.inf)
    masked[stop] = logits[stop]
    assert make_sampler(stop=(stop,), temperature=0.0, min_tokens=2).draw(logits, masked).token == stop


def test_stop_ids_are_not_drawn_before_min_tokens() -> None:
    logits = make_logits()
    best, second = logits.topk(2).indices.tolist()
    sampler = make_sampler(stop=(best,), temperature=0.0, min_tokens=2)
    assert [sampler.draw(logits).token for _ in range(3)] == [second, second, best]


def test_logprobs_are_the_models_own() -> None:
    logits = make_logits()
    drawn = make_sampler(temperature=0.5, top_k=2, logprobs=3, seed=0).draw(logits)
    expected = logits.log_softmax(0)
    assert drawn.logprob is not None
    assert drawn.logprob.logprob == pytest.approx(float(expected[drawn.token]))
    assert [token for token, _ in drawn.logprob.top] == logits.topk(3).indices.tolist()
    assert [p for _, p in drawn.logprob.top] == pytest.approx(expected.topk(3).values.tolist())
    assert make_sampler(temperature=0.0, logprobs=0).draw(logits).logprob.top == ()  # type: ignore[union-attr]
    assert make_sampler().draw(logits).logprob is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("min_p", -0.5),
        ("frequency_penalty", math.inf),
        ("presence_penalty", math.nan),
        ("frequency_penalty", 101.0),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", 3e-38),
        ("repetition_penalty", 101.0),
        ("logit_bias", {0: 3e38}),
        ("logit_bias", {VOCAB: 1.0}),
        ("logit_bias", {0: math.nan}),
        ("max_tokens", 0),
        ("min_tokens", -1),
        ("logprobs", VOCAB + 1),
    ],
)
def test_values_without_meaning_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(RequestError, match=field) as error:
        check_sampling(SamplingParams(**{field: value}), VOCAB)  # type: ignore[arg-type]
    assert error.value.param == field
    assert error.value.code == "invalid_request"


def test_min_tokens_above_max_tokens_is_refused() -> None:
    with pytest.raises(RequestError, match="min_tokens is 5"):
        check_sampling(SamplingParams(max_tokens=4, min_tokens=5), VOCAB)
    check_sampling(SamplingParams(max_tokens=4, min_tokens=4, logprobs=VOCAB), VOCAB)
