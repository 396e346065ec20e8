"""Which experts of a long prompt to stream through the GPU, so that it and the CPU finish together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LEAST_TOKENS = 256
"""Shorter chunks are never streamed, whatever the rates: decode steps and graphs of them stay as they are."""

GAIN = 0.1
"""Share of a layer's time that streaming must save, by the rates: these are only estimates."""


@dataclass(frozen=True)
class StreamRates:
    """What was measured on this machine, all a second.

    Attributes:
        copy: bytes of experts, from the model file to the GPU.
        gpu: multiply-adds of experts that are on the GPU, at many tokens each.
        cpu_read: bytes of experts that the expert service goes through, at few tokens each.
        cpu: its multiply-adds, at many.
    """

    copy: float
    gpu: float
    cpu_read: float
    cpu: float


@dataclass(frozen=True)
class ExpertCost:
    """One expert: its bytes in the file, and its weights, which are the multiply-adds of a token."""

    nbytes: int
    weights: int


def cpu_seconds(counts: Sequence[int], cost: ExpertCost, rates: StreamRates) -> float:
    """Of the expert service, for experts with so many tokens: each takes its reading or its computing."""
    read = cost.nbytes / rates.cpu_read
    return sum(max(read, n * cost.weights / rates.cpu) for n in counts if n)


def gpu_seconds(counts: Sequence[int], cost: ExpertCost, rates: StreamRates) -> float:
    """Of streaming: copies and products overlap but for the last expert's product."""
    used = [n for n in counts if n]
    if not used:
        return 0.0
    products = [n * cost.weights / rates.gpu for n in used]
    return max(len(used) * cost.nbytes / rates.copy + products[-1], sum(products))


def choose_streamed(counts: Sequence[int], cost: ExpertCost, rates: StreamRates) -> list[int]:
    """The experts to stream: those with most tokens, as many as make both ends finish soonest.

    Args:
        counts: tokens of each expert of the layer.
        cost: of an expert.
        rates: of this machine.

    Returns:
        The experts, those with most tokens first; none if it saves less than `GAIN`.
    """
    ranked = sorted((e for e, n in enumerate(counts) if n), key=lambda e: (-counts[e], e))
    tokens = [counts[e] for e in ranked]
    whole = cpu_seconds(tokens, cost, rates)
    times = [
        max(gpu_seconds(tokens[:n], cost, rates), cpu_seconds(tokens[n:], cost, rates))
        for n in range(len(ranked) + 1)
    ]
    best = min(range(len(times)), key=times.__getitem__)
    return ranked[:best] if times[best] <= (1 - GAIN) * whole else []


def streaming_threshold(n_experts: int, top_k: int, cost: ExpertCost, rates: StreamRates, most: int) -> int:
    """From how many tokens, in powers of two, streaming pays if all experts are used alike.

    Args:
        n_experts, top_k: of a layer.
        cost, rates: as in `choose_streamed`.
        most: tokens of the longest chunk.

    Returns:
        At least `LEAST_TOKENS`; more than `most` if it never pays.
    """
    n_tokens = LEAST_TOKENS
    while n_tokens <= most:
        share, more = divmod(n_tokens * top_k, n_experts)
        if choose_streamed([share + (e < more) for e in range(n_experts)], cost, rates):
            return n_tokens
        n_tokens *= 2
    return n_tokens
