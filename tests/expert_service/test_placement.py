"""Which experts a shard takes."""

from __future__ import annotations

import pytest
from trimaran.config import ExpertsConfig
from trimaran.errors import ConfigError
from trimaran_experts.placement import place


def test_all_experts() -> None:
    placement = place(ExpertsConfig(), 256, [0, 2, 4])
    assert (placement.shard, placement.experts, placement.cpus) == ("0", (0, 256), (0, 2, 4))


@pytest.mark.parametrize(("text", "experts"), [("0-127", (0, 128)), ("128-255", (128, 256)), ("7-7", (7, 8))])
def test_a_range_includes_both_ends_and_names_the_shard(text: str, experts: tuple[int, int]) -> None:
    placement = place(ExpertsConfig(experts=text), 256, [1])
    assert (placement.shard, placement.experts) == (text, experts)


@pytest.mark.parametrize("text", ["0-256", "5-4", "300-400"])
def test_a_range_that_the_model_does_not_have(text: str) -> None:
    with pytest.raises(ConfigError, match="experts are 0-255"):
        place(ExpertsConfig(experts=text), 256, [1])
