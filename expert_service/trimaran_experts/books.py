"""What was computed from this shard's weights, here and by clients that borrow them, as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from trimaran.wire import Borrowed
from trimaran_kernels.hop import CallGate

MAX_BOOKS = 64
"""Books of borrowers, past ones included, that are kept apart."""

_MOST = 1 << 62


@dataclass(frozen=True)
class Counts:
    """Counters of a call gate; by layer, each expert's tokens and calls by duration, as `CallGate` has."""

    counters: Mapping[str, int] = field(default_factory=dict)
    routed: Mapping[int, Sequence[int]] = field(default_factory=dict)
    latencies: Mapping[int, Sequence[int]] = field(default_factory=dict)

    @classmethod
    def of(cls, gate: CallGate | None) -> Counts:
        """A gate's own; none before there is one."""
        return cls() if gate is None else cls(gate.counters(), gate.expert_tokens(), gate.latencies())

    def __add__(self, other: Counts) -> Counts:
        """Both."""
        counters = {**self.counters}
        for name, value in other.counters.items():
            counters[name] = counters.get(name, 0) + value
        return Counts(counters, _added(self.routed, other.routed), _added(self.latencies, other.latencies))


class Books:
    """The latest word of each borrower.

    Args:
        layers, n_experts: of the model.
    """

    def __init__(self, layers: Sequence[int], n_experts: int) -> None:
        self._layers = frozenset(layers)
        self._n_experts = n_experts
        self._closed = Counts()
        self._open: dict[str, Counts] = {}

    def note(self, message: Borrowed, gate: CallGate) -> bool:
        """Take a borrower's word; False if it makes no sense: other layers, experts or buckets."""
        counts = Counts(message.counters, message.expert_tokens, message.layer_times)
        if not self._is_sane(counts, gate.counters()):
            return False
        self._open[message.books] = counts
        if len(self._open) > MAX_BOOKS:
            self._closed += self._open.pop(next(iter(self._open)))
        return True

    def total(self, gate: CallGate | None) -> Counts:
        """Everything, with what the gate did."""
        total = self._closed + Counts.of(gate)
        for counts in self._open.values():
            total += counts
        return total

    def _is_sane(self, counts: Counts, own: Mapping[str, int]) -> bool:
        if counts.counters.keys() != own.keys():
            return False
        if not (counts.routed.keys() <= self._layers and counts.latencies.keys() <= self._layers):
            return False
        n_buckets = sum(name.startswith("busy_le_") for name in own)
        rows = (*counts.routed.values(), *counts.latencies.values(), tuple(counts.counters.values()))
        return (
            all(len(row) == self._n_experts for row in counts.routed.values())
            and all(len(row) == n_buckets for row in counts.latencies.values())
            and all(0 <= number < _MOST for row in rows for number in row)
        )


def _added(
    ours: Mapping[int, Sequence[int]], theirs: Mapping[int, Sequence[int]]
) -> dict[int, Sequence[int]]:
    total = {**ours}
    for layer, row in theirs.items():
        seen = total.get(layer)
        total[layer] = row if seen is None else [a + b for a, b in zip(seen, row, strict=True)]
    return total
