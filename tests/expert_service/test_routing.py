from __future__ import annotations

import pytest
from trimaran_experts.routing import load_imbalance, own_tokens

ROUTED = {3: [4, 0, 2, 2], 4: [0, 0, 0, 0]}


def test_shards_add_up_to_the_whole() -> None:
    halves = [own_tokens(ROUTED, (0, 2)), own_tokens(ROUTED, (2, 4))]
    assert halves[0] == {3: [4, 0, 0, 0], 4: [0, 0, 0, 0]}
    assert {
        layer: [a + b for a, b in zip(halves[0][layer], halves[1][layer], strict=True)] for layer in ROUTED
    } == ROUTED


@pytest.mark.parametrize(("experts", "ratio"), [((0, 4), 2.0), ((0, 2), 2.0), ((2, 4), 1.0), ((1, 2), 0.0)])
def test_imbalance_is_the_busiest_expert_over_the_mean(experts: tuple[int, int], ratio: float) -> None:
    assert load_imbalance(ROUTED, experts) == ratio


def test_nothing_routed_is_no_imbalance() -> None:
    assert load_imbalance({}, (0, 4)) == 0.0
