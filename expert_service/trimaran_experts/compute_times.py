"""How long layer calls took, as a histogram under the names that Prometheus gives its parts."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate

_GATE_PREFIX = "busy_le_"
_NAME = "expert_layer_compute_seconds"
_NS = 1e9


def compute_times(gate_counters: Mapping[str, int]) -> dict[str, float]:
    """The histogram of a call gate's counters (see `CallGate.counters`); empty before there is a gate."""
    names = [name for name in gate_counters if name.startswith(_GATE_PREFIX)]
    if not names:
        return {}
    bounds = [float(name.removeprefix(_GATE_PREFIX)) / _NS for name in names]
    totals = accumulate(gate_counters[name] for name in names)
    buckets = {
        f'{_NAME}_bucket{{le="{_le(bound)}"}}': float(total)
        for bound, total in zip(bounds, totals, strict=True)
    }
    return {**buckets, f"{_NAME}_sum": gate_counters["busy_ns"] / _NS}


def time_bounds(gate_counters: Mapping[str, int]) -> list[int]:
    """Upper bounds of the histogram's buckets in nanoseconds, without the last one, which has none."""
    names = (name for name in gate_counters if name.startswith(_GATE_PREFIX))
    return [int(bound) for name in names if (bound := name.removeprefix(_GATE_PREFIX)) != "inf"]


def _le(bound: float) -> str:
    return "+Inf" if bound == float("inf") else f"{bound:g}"
