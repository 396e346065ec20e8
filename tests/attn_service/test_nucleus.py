"""The fast ways against sorting everything."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from trimaran.wire import SamplingParams
from trimaran_attn.nucleus import BLOCK, draw_place, keep, largest


def make_weights(seed: int, n: int, spread: float) -> Tensor:
    logits = torch.randn(n, generator=torch.Generator().manual_seed(seed)) * spread
    return (logits - logits.max()).exp()


def keep_slowly(weights: Tensor, params: SamplingParams) -> list[int]:
    """By the definitions, over the whole vocabulary, sorted."""
    order = sorted(range(len(weights)), key=lambda i: (-float(weights[i]), i))
    kept = order[: params.top_k] if params.top_k else order
    values = weights.double()[kept]
    if params.top_p < 1:
        before = values.cumsum(0) - values
        kept = kept[: int((before < params.top_p * float(values.sum())).sum())]
    return [i for i in kept if float(weights[i]) >= params.min_p]


@pytest.mark.parametrize(("top_p", "n_kept"), [(0.25, 1), (0.26, 2), (0.5, 2), (0.75, 3)])
def test_no_token_is_kept_beyond_the_one_that_reaches_top_p(top_p: float, n_kept: int) -> None:
    ids, _ = keep(torch.ones(4), SamplingParams(top_p=top_p))
    assert ids is not None
    assert ids.tolist() == list(range(n_kept))


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 1000),
    n=st.integers(1, 700),
    spread=st.sampled_from([0.0, 0.01, 1.0, 5.0, 40.0]),
    top_k=st.sampled_from([0, 1, 3, 50, 10_000]),
    top_p=st.sampled_from([1e-9, 0.3, 0.9, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 1e-9, 0.05, 1.0]),
)
def test_kept_tokens_are_those_of_the_definitions(
    seed: int, n: int, spread: float, top_k: int, top_p: float, min_p: float
) -> None:
    params = SamplingParams(top_k=top_k, top_p=top_p, min_p=min_p)
    weights = make_weights(seed, n, spread)
    ids, kept = keep(weights, params)
    expected = keep_slowly(weights, params)
    if ids is None:
        assert len(expected) == n
        assert torch.equal(kept, weights)
        return
    # Sums in another order may put the border of top-p one token further.
    assert abs(len(ids) - len(expected)) <= (top_p < 1)
    assert ids.tolist()[: len(expected)] == expected[: len(ids)]
    assert kept.tolist() == weights.double()[ids].tolist()


@pytest.mark.parametrize("spread", [0.0, 1.0, 30.0])
@pytest.mark.parametrize("count", [0, 1, 5, 2000])
def test_largest(spread: float, count: int) -> None:
    logits = torch.randn(2000, generator=torch.Generator().manual_seed(1)) * spread
    logits[7] = -torch.inf
    ids, values = largest(logits, float(logits.max()), count)
    expected, order = logits.sort(descending=True, stable=True)
    assert torch.equal(values, expected[:count])
    assert torch.equal(ids, order[:count])


@given(
    seed=st.integers(0, 1000),
    n=st.integers(1, 3 * BLOCK + 5),
    share=st.floats(0, 1, exclude_max=True),
    spread=st.sampled_from([0.0, 1.0, 40.0]),
)
def test_the_place_is_that_of_the_running_sum(seed: int, n: int, share: float, spread: float) -> None:
    weights = make_weights(seed, n, spread).numpy()
    place = draw_place(weights, share)
    sums = np.cumsum(weights, dtype=np.float64)
    tolerance = 1e-12 * sums[-1]
    assert weights[place] > 0
    assert sums[place] >= share * sums[-1] - tolerance
    assert sums[place] - weights[place] <= share * sums[-1] + tolerance


def test_the_end_of_the_sum_is_the_last_token_with_any_weight() -> None:
    weights = np.zeros(3 * BLOCK, np.float32)
    weights[[5, BLOCK + 1]] = 0.1, 0.2
    assert draw_place(weights, 1.0) == BLOCK + 1
    assert draw_place(weights, 0.0) == 5
