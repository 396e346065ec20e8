"""Which CPUs and which memory a shard uses on a machine of several NUMA nodes: pure functions."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from trimaran.errors import ConfigError
from trimaran.machine import NumaNode

Policy = Literal["default", "prefer", "bind", "interleave"]


@dataclass(frozen=True)
class Seat:
    """Where a shard sits.

    Attributes:
        cpus: that it may compute on; the caller picks one of each core.
        nodes: whose memory holds the weights. policy: whether they should lie there as far as they fit, must
            lie there, or lie page by page in turn; "default" asks for nothing.
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
    if wanted is None:
        return _seat_of_all(nodes, allowed)
    node = next((node for node in nodes if node.number == wanted), None)
    if node is None:
        numbers = ", ".join(str(one.number) for one in nodes) or "none"
        raise ConfigError(f"experts.node is {wanted}, but this machine's nodes are {numbers}")
    if not node.cpus:
        raise ConfigError(
            f"experts.node is {wanted}, which has memory but no CPUs", remedy="name a node that has some"
        )
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
    # Memory beside CPUs is faster than a node of memory alone (CXL).
    others = [one for one in nodes if one.memory and one.cpus] or [one for one in nodes if one.memory]
    return Seat(cpus, tuple(one.number for one in others), "interleave")


def _seat_of_all(nodes: Sequence[NumaNode], allowed: Collection[int]) -> Seat:
    """On all CPUs: their nodes' memory in turn, or their only node's, where pages might come from others."""
    cpus = tuple(sorted(allowed))
    with_memory = [node for node in nodes if node.memory]
    here = tuple(node.number for node in with_memory if set(node.cpus) & set(allowed))
    if len(here) > 1:
        return Seat(cpus, here, "interleave")
    if here and len(with_memory) > 1:
        return Seat(cpus, here, "prefer")
    return Seat(cpus, (), "default")


def room_on(seat: Seat, nodes: Sequence[NumaNode], available: int) -> int:
    """Bytes that weights may take of `available` in the machine: bound to nodes, no more than these have.

    A process that is bound to a full node is killed, however much memory others have.
    """
    if seat.policy != "bind":
        return available
    bound = [node.available for node in nodes if node.number in seat.nodes]
    return min(available, sum(available if free is None else free for free in bound))


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
