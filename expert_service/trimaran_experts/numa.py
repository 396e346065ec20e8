"""Which CPUs and which memory a shard uses on a machine of several NUMA nodes: pure functions."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from trimaran.errors import ConfigError
from trimaran.machine import NumaNode

Policy = Literal["default", "bind", "interleave"]


@dataclass(frozen=True)
class Seat:
    """Where a shard sits.

    Attributes:
        cpus: that it may compute on; the caller picks one of each core.
        nodes: whose memory holds the weights. policy: whether they must lie there, or page by page in turn;
            "default" asks for nothing.
    """

    cpus: tuple[int, ...]
    nodes: tuple[int, ...]
    policy: Policy


def seat(nodes: Sequence[NumaNode], allowed: Collection[int], wanted: int | None) -> Seat:
    """The seat of a shard.

    Args:
        nodes: of the machine. allowed: CPUs that this process may use.
        wanted: the node that the configuration asks for; None: all.

    Raises:
        ConfigError: there is no such node, or none of its CPUs is allowed.
    """
    here = [node for node in nodes if set(node.cpus) & set(allowed)]
    if wanted is None:
        with_memory = tuple(node.number for node in here if node.memory)
        if len(with_memory) < 2:
            return Seat(tuple(sorted(allowed)), (), "default")
        return Seat(tuple(sorted(allowed)), with_memory, "interleave")
    node = next((node for node in nodes if node.number == wanted), None)
    if node is None:
        numbers = ", ".join(str(one.number) for one in nodes) or "none"
        raise ConfigError(f"experts.node is {wanted}, but this machine's nodes are {numbers}")
    cpus = tuple(sorted(set(node.cpus) & set(allowed)))
    if not cpus:
        raise ConfigError(
            f"experts.node is {wanted}, but this process may use none of its CPUs",
            remedy="look at its affinity and at experts.cpus",
        )
    if len(nodes) < 2:
        return Seat(cpus, (), "default")
    if node.memory:
        return Seat(cpus, (wanted,), "bind")
    others = tuple(one.number for one in nodes if one.memory)
    return Seat(cpus, others, "interleave")


def split_experts(
    nodes: Sequence[NumaNode], allowed: Collection[int], n_experts: int
) -> dict[int, tuple[int, int]]:
    """One shard per node: by node, the half-open range of experts, in proportion to its CPUs.

    Nodes without allowed CPUs or without memory get none; the ranges follow each other without a gap.
    """
    weights = {
        node.number: len(set(node.cpus) & set(allowed))
        for node in nodes
        if node.memory and set(node.cpus) & set(allowed)
    }
    total, seen, ranges = sum(weights.values()), 0, {}
    for number, weight in weights.items():
        first, end = n_experts * seen // total, n_experts * (seen + weight) // total
        if end > first:
            ranges[number] = (first, end)
        seen += weight
    return ranges
