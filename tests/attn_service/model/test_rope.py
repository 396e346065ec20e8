from __future__ import annotations

import itertools
import math

import pytest
import torch
from trimaran.spec import RopeSpec
from trimaran_attn.model.rope import Rope, amplitude, rotate, softmax_scale

CPU = torch.device("cpu")
V3 = RopeSpec(theta=10000.0, factor=40.0, original_context=4096, log_multiplier=0.1)


def test_pairs_are_neighbours() -> None:
    x = torch.tensor([[[1.0, 0.0, 0.0, 1.0]]])
    angle = torch.tensor([[math.pi / 2, math.pi]])
    expected = torch.tensor([[[0.0, 1.0, 0.0, -1.0]]])
    torch.testing.assert_close(rotate(x, angle.cos(), angle.sin()), expected)


def test_scores_depend_on_distance_only() -> None:
    rope = Rope(V3, 64, CPU)
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 64, generator=generator)
    scores = []
    for start in (0, 37, 901):
        cos, sin = rope.angles(torch.tensor([start + 11, start]))
        scores.append(float((rotate(q, cos[:1], sin[:1]) * rotate(k, cos[1:], sin[1:])).sum()))
    assert scores == pytest.approx([scores[0]] * 3, rel=1e-3)


def test_plain_frequencies() -> None:
    cos, _ = Rope(RopeSpec(theta=100.0), 4, CPU).angles(torch.tensor([3]))
    assert cos[0].tolist() == pytest.approx([math.cos(3.0), math.cos(0.3)])


def test_yarn_keeps_fast_pairs_and_slows_slow_ones_by_the_factor() -> None:
    plain = Rope(RopeSpec(theta=10000.0), 64, CPU)._frequencies
    scaled = Rope(V3, 64, CPU)._frequencies
    ratio = (plain / scaled).tolist()
    assert ratio[0] == pytest.approx(1.0)
    assert ratio[-1] == pytest.approx(40.0)
    assert all(a <= b * (1 + 1e-6) for a, b in itertools.pairwise(ratio))


def test_the_softmax_scale_of_v3() -> None:
    """(0.1·ln 40 + 1)² / √192, as in the model's published code."""
    assert softmax_scale(V3, 192) == pytest.approx((0.1 * math.log(40) + 1) ** 2 / math.sqrt(192))
    assert softmax_scale(RopeSpec(theta=1e4), 192) == pytest.approx(192**-0.5)


def test_the_amplitude_is_one_unless_the_file_lacks_the_multiplier() -> None:
    assert amplitude(V3) == 1.0
    assert amplitude(RopeSpec(theta=1e4)) == 1.0
    without = RopeSpec(theta=1e4, factor=40.0, original_context=4096)
    assert amplitude(without) == pytest.approx(0.1 * math.log(40) + 1)
