from __future__ import annotations

from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trimaran.errors import ConfigError
from trimaran.plan import parse_layers, place_layers


def fullness(ranges: tuple[range, ...], loads: list[int], head: int, rooms: list[int]) -> float:
    used = [sum(loads[layer] for layer in part) for part in ranges]
    used[-1] += head
    return max(nbytes / max(room, 1) for nbytes, room in zip(used, rooms, strict=True))


@given(
    st.lists(st.integers(0, 100), min_size=3, max_size=7),
    st.integers(0, 200),
    st.lists(st.integers(-5, 300), min_size=1, max_size=3),
)
def test_no_other_borders_are_better(loads: list[int], head: int, rooms: list[int]) -> None:
    ranges = place_layers(loads, head, rooms)
    assert [layer for part in ranges for layer in part] == list(range(len(loads)))
    assert len(ranges) == len(rooms)
    assert all(ranges)
    best = fullness(ranges, loads, head, rooms)
    for inner in combinations(range(1, len(loads)), len(rooms) - 1):
        other = tuple(range(*border) for border in pairwise((0, *inner, len(loads))))
        assert best <= fullness(other, loads, head, rooms)


def test_equal_cards_get_equal_layers_and_a_head_counts() -> None:
    assert place_layers([10] * 8, 0, [100, 100]) == (range(4), range(4, 8))
    assert place_layers([10] * 8, 20, [100, 100]) == (range(5), range(5, 8))
    assert place_layers([10] * 9, 0, [100, 200]) == (range(3), range(3, 9))


def test_more_devices_than_layers() -> None:
    with pytest.raises(ConfigError, match="3 devices for a model of 2 layers"):
        place_layers([1, 1], 0, [1, 1, 1])


def test_layers_by_hand() -> None:
    assert parse_layers("0-30,31-60", 61, 2) == (range(31), range(31, 61))


@pytest.mark.parametrize("text", ["0-30,32-60", "1-30,31-60", "0-30,31-59", "0-30,31-61", "0-60,61-60"])
def test_layers_that_are_not_the_models(text: str) -> None:
    with pytest.raises(ConfigError, match=r"attn.layers is .*from 0 to 60"):
        parse_layers(text, 61, 2)
