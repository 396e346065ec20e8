"""Tokens drawn on a GPU: those that the host's sampler draws, whatever is asked for."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from interpreted import DEVICE, ON_GPU
from trimaran.wire import SamplingParams
from trimaran_attn import drawing
from trimaran_attn.drawing import NOT_WANTED, draw_now
from trimaran_attn.draws import Draw
from trimaran_attn.sampler import Sampler
from trimaran_kernels.gpu import sampling
from trimaran_kernels.gpu.sampling import LARGEST_VOCAB, draw
from trimaran_kernels.gpu.sampling_inputs import NOT_FINITE, DrawInputs
from trimaran_kernels.gpu.sampling_inputs import NOT_WANTED as NO_TOKEN
from trimaran_kernels.gpu.sampling_reference import draw_reference

WAYS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {},
    {"temperature": 0.6, "top_p": 0.95},
    {"temperature": 1.3, "top_k": 20},
    {"temperature": 0.8, "top_k": 7, "top_p": 0.5},
    {"min_p": 0.05},
    {"top_p": 0.9999, "min_p": 1e-6},
    {"top_k": 10_000, "top_p": 0.7, "min_p": 0.3},
    {"top_k": 1},
    {"top_p": 1e-9},
    {"temperature": 1e-6},
    {"temperature": 40.0, "top_k": 900},
    {"temperature": 1e300, "top_p": 0.5},
]


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several of them, and a last one that is not full, in small vocabularies too."""
    if not ON_GPU:
        monkeypatch.setattr(sampling, "WIDEST_BLOCK", 512)


def draws_of(samplers: list[Sampler]) -> list[Draw]:
    draws = [sampler.next_draw() for sampler in samplers]
    assert None not in draws
    return [draw for draw in draws if draw is not None]


def sampler(seed: int = 0, **params: Any) -> Sampler:
    return Sampler(SamplingParams(seed=seed, **params), (), ())


def random_logits(rows: int, vocab: int, seed: int, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * scale


def drawn(logits: torch.Tensor, draws: list[Draw]) -> list[int]:
    tokens: list[int] = draw_now(draw, logits.to(DEVICE), draws).tolist()
    return tokens


@pytest.mark.parametrize(
    ("vocab", "scale", "step"),
    [(1, 1.0, 0.0), (512, 8.0, 0.0), (1100, 3.0, 0.0), (700, 0.02, 0.0), (600, 3.0, 1.0)],
)
def test_tokens_are_the_samplers(vocab: int, scale: float, step: float) -> None:
    """Peaked and flat rows; with `step`, many logits are equal."""
    logits = random_logits(len(WAYS), vocab, vocab, scale)
    if step:
        logits = (logits / step).round() * step
    samplers = [sampler(seed, **way) for seed, way in enumerate(WAYS)]
    expected = [one.draw(row).token for one, row in zip(samplers, logits, strict=True)]
    samplers = [sampler(seed, **way) for seed, way in enumerate(WAYS)]
    assert drawn(logits, draws_of(samplers)) == expected


def test_the_reference_draws_the_samplers_tokens() -> None:
    for seed in range(20):
        logits = random_logits(len(WAYS), 500, seed, 0.1 if seed % 3 == 0 else 4.0)
        samplers = [sampler(seed, **way) for way in WAYS]
        tokens = draw_now(reference, logits, draws_of(samplers)).tolist()
        assert tokens == [one.draw(row).token for one, row in zip(samplers, logits, strict=True)]


def reference(logits: torch.Tensor, wanted: DrawInputs, out: torch.Tensor) -> torch.Tensor:
    return out.copy_(torch.tensor(draw_reference(logits, wanted)))


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1 - 2**-53])
def test_equal_logits_are_drawn_in_order_of_id(share: float) -> None:
    logits = torch.full((3, 600), -2.5)
    ways = [Draw(1.0, share=share), Draw(0.7, 100, share=share), Draw(1.0, 0, 0.5, share=share)]
    kept = [600, 100, 300]
    assert drawn(logits, ways) == [int(share * n) if share < 1 else n - 1 for n in kept]


@triton.jit
def _draw_all_the_way(logits, goals, out, vocab, BLOCK: tl.constexpr):  # noqa: N803 Triton's constants
    row = tl.program_id(0)
    token = sampling._draw_in_order(logits, vocab, 0.0, 1.0, tl.load(goals + row), BLOCK)
    tl.store(out + row, token)


def test_a_goal_that_sums_do_not_reach_is_the_last_token_with_any_mass() -> None:
    """Sums are rounded alike wherever they are made; were they not, no other token may come of it."""
    logits = torch.full((300,), -100.0)
    logits[[3, 70, 130, 140]] = torch.tensor([0.0, -1.0, -2.0, -3.0])
    total = sum(int(mass) for mass in np.exp(np.float64([0, -1, -2, -3])) * 2**44)
    goals = torch.tensor([0, total - 2**30, total + 2**30, 2**60], device=DEVICE)
    out = torch.zeros(4, dtype=torch.int32, device=DEVICE)
    _draw_all_the_way[(4,)](logits.to(DEVICE), goals, out, 300, BLOCK=64)
    assert out.tolist() == [3, 140, 140, 140]


def test_the_largest_of_equal_logits_is_the_first() -> None:
    logits = torch.zeros(2, 900)
    logits[0, [300, 299, 800]] = 4.0
    assert drawn(logits, [Draw(0.0), Draw(0.0)]) == [299, 0]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_row_that_is_not_finite_says_so_and_harms_no_other(value: float) -> None:
    logits = random_logits(3, 300, 1)
    clean = drawn(logits, [Draw(0.0)] * 3)
    for column, way in itertools.product((0, 299), (Draw(0.0), Draw(1.0, 5, share=0.3))):
        broken = logits.clone()
        broken[1, column] = value
        assert drawn(broken, [Draw(0.0), way, Draw(0.0)]) == [clean[0], NOT_FINITE, clean[2]]


def test_rows_that_others_draw_are_left() -> None:
    logits = random_logits(2, 300, 1)
    logits[0] = torch.nan
    assert drawn(logits, [NOT_WANTED, Draw(0.0)]) == [NO_TOKEN, int(logits[1].argmax())]


def test_the_whole_range_of_logits() -> None:
    """Differences that overflow, and temperatures that make them do so."""
    logits = torch.full((3, 300), -3e38)
    logits[:, 17] = 3e38
    logits[2, 20] = 2.9e38
    ways = [Draw(1.0, share=0.9), Draw(1e-30, 0, 0.9, share=0.9), Draw(1e38, 250, 1.0, 0.0, 0.999)]
    assert drawn(logits, ways) == [17, 17, 20]


def test_draws_follow_the_distribution() -> None:
    """Evenly spread shares hit each token as often as it is likely."""
    logits, n = random_logits(1, 9, 3, 1.0), 60
    shares = [(i + 0.5) / n for i in range(n)]
    counts = np.bincount(drawn(logits.expand(n, -1), [Draw(0.7, share=s) for s in shares]), minlength=9)
    np.testing.assert_allclose(counts / n, (logits[0] / 0.7).softmax(0), atol=1.01 / n)


def test_tokens_are_drawn_on_the_device_of_the_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several GPUs that of the head; Triton launches on the current one, whatever its tensors are on."""
    current: list[torch.device] = []

    @contextmanager
    def enter(device: torch.device) -> Iterator[None]:
        current.append(device)
        yield
        current.pop()

    def drawer(logits: torch.Tensor, wanted: DrawInputs, out: torch.Tensor) -> torch.Tensor:
        assert current == [logits.device]
        return reference(logits, wanted, out)

    monkeypatch.setattr(drawing, "entered", enter)
    logits = random_logits(2, 50, 1)
    assert draw_now(drawer, logits, [Draw(0.0)] * 2).tolist() == logits.argmax(-1).tolist()


def test_a_vocabulary_that_is_too_large_is_refused() -> None:
    logits = torch.empty(1, LARGEST_VOCAB + 1)
    with pytest.raises(ValueError, match="vocabulary of 262145"):
        draw_now(draw, logits, [Draw(0.0)])
    assert drawn(torch.empty(0, 9), []) == []
