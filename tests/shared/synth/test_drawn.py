"""Drawn blocks decode to values of the wanted deviation, with no mean in any column or block."""

from __future__ import annotations

import numpy as np
import pytest
from trimaran.gguf.dequant import dequantize
from trimaran.gguf.types import GGMLType
from trimaran.synth.drawn import draw_blocks

TYPES = ("Q4_0", "Q5_0", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "Q5_1")
SHAPE = (1024, 512)


@pytest.mark.parametrize("name", TYPES)
def test_deviation_and_mean(name: str) -> None:
    kind = GGMLType[name]
    values = dequantize(kind, draw_blocks(kind, SHAPE, 0.02, (1, 2)), SHAPE)
    assert values.std() == pytest.approx(0.02, rel=0.03)
    assert abs(values.mean()) < 0.02 * 0.01
    # What a constant input would give must not be larger than what a random one gives.
    assert np.abs(values.sum(1)).mean() < 2 * 0.02 * SHAPE[1] ** 0.5


@pytest.mark.parametrize("name", TYPES)
def test_seeds(name: str) -> None:
    kind = GGMLType[name]
    first = draw_blocks(kind, SHAPE, 0.02, (1, 2))
    np.testing.assert_array_equal(first, draw_blocks(kind, SHAPE, 0.02, (1, 2)))
    assert (first != draw_blocks(kind, SHAPE, 0.02, (1, 3))).any()
