from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trimaran_attn.gpu_experts.placement import MIN_ROUTES, best_swap, choose_residents

SIZES = {3: 10, 4: 10, 5: 10}


def test_without_counts_every_layer_gets_its_share() -> None:
    chosen = choose_residents({}, SIZES, room=75, n_experts=8)
    assert chosen == {3: (0, 1, 2), 4: (0, 1), 5: (0, 1)}


def test_the_most_used_come_first_whatever_their_layer() -> None:
    heat = {3: [1, 90, 5, 4], 4: [25, 25, 25, 25], 5: [0, 0, 60, 40]}
    assert choose_residents(heat, SIZES, room=40, n_experts=4) == {3: (1,), 4: (0,), 5: (2, 3)}


def test_a_smaller_expert_is_worth_more() -> None:
    heat = {3: [50, 50], 4: [50, 50]}
    assert choose_residents(heat, {3: 30, 4: 10}, room=45, n_experts=2) == {4: (0, 1)}


def test_a_busy_layer_does_not_outweigh_the_others() -> None:
    heat = {3: [1000, 1000], 4: [9, 1]}
    assert choose_residents(heat, {3: 10, 4: 10}, room=10, n_experts=2) == {4: (0,)}


@given(
    sizes=st.dictionaries(st.integers(0, 5), st.integers(1, 50), max_size=5),
    room=st.integers(0, 2000),
    data=st.data(),
)
def test_the_room_is_used_and_kept_to(sizes: dict[int, int], room: int, data: st.DataObject) -> None:
    counts = st.lists(st.integers(0, 1000), min_size=6, max_size=6)
    heat = {layer: data.draw(counts) for layer in sizes if data.draw(st.booleans())}
    chosen = choose_residents(heat, sizes, room, 6)
    used = sum(sizes[layer] * len(experts) for layer, experts in chosen.items())
    assert used <= room
    assert all(len(set(experts)) == len(experts) > 0 for experts in chosen.values())
    left = [size for layer, size in sizes.items() if len(chosen.get(layer, ())) < 6]
    assert not left or room - used < max(left)


def test_a_swap_brings_in_what_serves_most() -> None:
    heat = {3: [MIN_ROUTES, 10, 500], 4: [900, 100, 800]}
    swap = best_swap(heat, {3: [1], 4: [1, 0]})
    assert swap is not None
    assert (swap.layer, swap.slot, swap.outgoing, swap.incoming) == (3, 0, 1, 0)
    assert swap.gain == pytest.approx(990 / 1510)
    assert best_swap(heat, {4: [1, 0]}) == best_swap({4: heat[4]}, {3: [1], 4: [1, 0]})


@pytest.mark.parametrize(
    ("counts", "residents"),
    [
        ([1000, 999], [1]),  # hardly more
        ([10, 0], [1]),  # too few to tell
        ([1000, 5], [0, 1]),  # all are here
        ([5, 1000], [1]),  # the right one is
        ([], [0]),
    ],
)
def test_nothing_moves_without_reason(counts: list[int], residents: list[int]) -> None:
    assert best_swap({3: counts}, {3: residents}) is None
