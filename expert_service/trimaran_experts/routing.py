"""Where the router sends tokens: counts by layer and expert, and how uneven they are."""

from __future__ import annotations

from collections.abc import Mapping

RoutedTokens = Mapping[int, list[int]]
"""By layer, tokens routed to each expert id since the start."""


def own_tokens(routed: RoutedTokens, experts: tuple[int, int]) -> dict[int, list[int]]:
    """The counts of the half-open range `experts`; the others are 0, so that the shards' counts add up."""
    first, end = experts
    return {
        layer: [count if first <= expert < end else 0 for expert, count in enumerate(counts)]
        for layer, counts in routed.items()
    }


def load_imbalance(routed: RoutedTokens, experts: tuple[int, int]) -> float:
    """The busiest expert's share of tokens over the mean, averaged over the layers; 1 is even, 0 is idle."""
    first, end = experts
    ratios = [
        max(counts[first:end]) * (end - first) / total
        for counts in routed.values()
        if (total := sum(counts[first:end]))
    ]
    return sum(ratios) / len(ratios) if ratios else 0.0
