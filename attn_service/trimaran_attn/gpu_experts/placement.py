"""Which experts a GPU holds: those that serve most of the routes for their bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MARGIN = 1.25
"""An expert takes another's place only if it is used so much more often: chance shall not move weights."""

MIN_ROUTES = 1000
"""Of a layer, before its counts move anything."""


def choose_residents(
    heat: Mapping[int, Sequence[int]], sizes: Mapping[int, int], room: int, n_experts: int
) -> dict[int, tuple[int, ...]]:
    """Fill the room, always with the expert that is used most for its size.

    A layer without counts is taken for evenly used. Between equals, each layer gets one before any gets two:
    whatever turns out to be hot later then finds a slot in its layer.

    Args:
        heat: by layer, how often each expert was used.
        sizes: by layer, bytes of an expert; other layers get none.
        room: bytes.
        n_experts: of a layer.

    Returns:
        By layer with at least one, its experts, the most used first.
    """
    candidates = []
    for layer, size in sizes.items():
        counts = heat.get(layer) or [0] * n_experts
        total = sum(counts) + n_experts  # one more each: nobody is known never to be used
        ranked = sorted(range(n_experts), key=lambda expert: -counts[expert])
        known = any(heat.values())
        for rank, expert in enumerate(ranked):
            value = (counts[expert] + 1) / total / size if known else 0.0
            candidates.append((-value, rank, layer, expert))
    chosen: dict[int, list[int]] = {}
    for _, _, layer, expert in sorted(candidates):
        if sizes[layer] <= room:
            room -= sizes[layer]
            chosen.setdefault(layer, []).append(expert)
    return {layer: tuple(experts) for layer, experts in sorted(chosen.items())}


@dataclass(frozen=True)
class Swap:
    """In `layer`, `incoming` takes the slot of `outgoing`; `gain` is the share of the layer's routes."""

    layer: int
    slot: int
    outgoing: int
    incoming: int
    gain: float


def best_swap(heat: Mapping[int, Sequence[int]], residents: Mapping[int, Sequence[int]]) -> Swap | None:
    """The exchange that serves most routes more; None if none is worth it.

    Args:
        heat: by layer, how often each expert was used.
        residents: by layer, the expert in each slot.
    """
    swaps = [_swap(layer, heat.get(layer, ()), experts) for layer, experts in residents.items()]
    return max((swap for swap in swaps if swap is not None), key=lambda swap: swap.gain, default=None)


def _swap(layer: int, counts: Sequence[int], residents: Sequence[int]) -> Swap | None:
    total = sum(counts)
    others = [expert for expert in range(len(counts)) if expert not in residents]
    if total < MIN_ROUTES or not others:
        return None
    incoming = max(others, key=lambda expert: counts[expert])
    slot = min(range(len(residents)), key=lambda place: counts[residents[place]])
    outgoing = residents[slot]
    if counts[incoming] <= MARGIN * counts[outgoing]:
        return None
    return Swap(layer, slot, outgoing, incoming, (counts[incoming] - counts[outgoing]) / total)
