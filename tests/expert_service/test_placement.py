"""Which experts a shard takes."""

from __future__ import annotations

import pytest
from trimaran.config import ExpertsConfig
from trimaran.errors import ConfigError
from trimaran.run_dir import experts_endpoint
from trimaran_experts.placement import place


def test_all_experts() -> None:
    placement = place(ExpertsConfig(), 256, 2048, [0, 2, 4])
    assert (placement.shard, placement.experts, placement.cpus) == ("0", (0, 256), (0, 2, 4))
    assert placement.columns == (0, 2048)


@pytest.mark.parametrize(("text", "experts"), [("0-127", (0, 128)), ("128-255", (128, 256)), ("7-7", (7, 8))])
def test_a_range_includes_both_ends_and_names_the_shard(text: str, experts: tuple[int, int]) -> None:
    placement = place(ExpertsConfig(experts=text), 256, 2048, [1])
    assert (placement.shard, placement.experts) == (text, experts)


@pytest.mark.parametrize("text", ["0-256", "5-4", "300-400"])
def test_a_range_that_the_model_does_not_have(text: str) -> None:
    with pytest.raises(ConfigError, match="experts are 0-255"):
        place(ExpertsConfig(experts=text), 256, 2048, [1])


def test_columns_of_all_experts_or_of_some() -> None:
    placement = place(ExpertsConfig(columns="512-1023"), 256, 2048, [1])
    assert (placement.shard, placement.experts, placement.columns) == ("c512-1023", (0, 256), (512, 1024))
    placement = place(ExpertsConfig(experts="128-255", columns="1024-2047"), 256, 2048, [1])
    assert placement.shard == "128-255_c1024-2047"
    assert experts_endpoint("/run", placement.shard).endswith("/experts-128-255_c1024-2047.sock")


@pytest.mark.parametrize("text", ["0-2048", "9-8"])
def test_columns_that_the_model_does_not_have(text: str) -> None:
    with pytest.raises(ConfigError, match="intermediate columns are 0-2047"):
        place(ExpertsConfig(columns=text), 256, 2048, [1])
