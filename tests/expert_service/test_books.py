"""What borrowers say they computed, added up."""

from __future__ import annotations

from typing import Any

import pytest
from trimaran.wire import Borrowed
from trimaran_experts.books import MAX_BOOKS, Books

OWN = {"calls": 1, "tokens": 2, "busy_le_5": 1, "busy_le_inf": 0}


class Gate:
    """A call gate of two experts, and layers 1 and 2."""

    def counters(self) -> dict[str, int]:
        return OWN

    def expert_tokens(self) -> dict[int, list[int]]:
        return {1: [3, 4]}

    def latencies(self) -> dict[int, list[int]]:
        return {1: [1, 0]}


GATE: Any = Gate()


def word(books: str, times: int, **changes: Any) -> Borrowed:
    counters = dict.fromkeys(OWN, times * 10)
    values = {"counters": counters, "expert_tokens": {2: [times, 0]}, "layer_times": {1: [0, times]}}
    return Borrowed(books=books, **{**values, **changes})


def test_the_latest_word_of_each_counts() -> None:
    books = Books((1, 2), 2)
    assert books.total(None).counters == {}
    assert books.note(word("a", 1), GATE)
    assert books.note(word("a", 2), GATE)
    assert books.note(word("b", 5), GATE)
    total = books.total(GATE)
    assert total.counters == {"calls": 71, "tokens": 72, "busy_le_5": 71, "busy_le_inf": 70}
    assert total.routed == {1: [3, 4], 2: [7, 0]}
    assert total.latencies == {1: [1, 7]}


def test_nothing_is_lost_of_many() -> None:
    books = Books((1, 2), 2)
    for number in range(3 * MAX_BOOKS):
        assert books.note(word(f"{number}", 1), GATE)
    assert books.total(GATE).counters["calls"] == 1 + 30 * MAX_BOOKS
    assert len(books._open) == MAX_BOOKS


@pytest.mark.parametrize(
    "changes",
    [
        {"counters": {}},
        {"counters": {**OWN, "calls": -1}},
        {"counters": {**OWN, "calls": 1 << 63}},
        {"expert_tokens": {3: [1, 1]}},
        {"expert_tokens": {1: [1]}},
        {"expert_tokens": {1: [1, -1]}},
        {"layer_times": {1: [1]}},
        {"layer_times": {0: [1, 1]}},
    ],
)
def test_nonsense_changes_nothing(changes: dict[str, Any]) -> None:
    books = Books((1, 2), 2)
    assert not books.note(word("a", 1, **changes), GATE)
    assert books.total(GATE).counters == OWN
