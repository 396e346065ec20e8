"""Statuses and counters of several engines as those of one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest

import msgspec
from trimaran.wire import EngineStats, EngineStatus

from trimaran_gateway.engine.interface import READY_STATES
from trimaran_gateway.engine.ledger import EngineLedger, is_engines_own

UP_GAUGE = "attention_service_up"
SILENCE_GAUGE = "attention_service_silence_seconds"


def total_status(statuses: Mapping[str, EngineStatus | None]) -> EngineStatus | None:
    """One status for all.

    `ready` if all engines are; `degraded` if some take requests; else what the one that is nearest to it
    says; None if none is there. The context is the shortest that may meet a request.
    """
    there = {label: status for label, status in statuses.items() if status is not None}
    if len(statuses) == 1 or not there:
        return next(iter(there.values()), None)
    serving = [status for status in there.values() if status.state in READY_STATES]
    if not serving:
        order = ("loading", "draining")
        return min(there.values(), key=lambda status: (order.index(status.state), -status.progress))
    if len(serving) == len(statuses) and all(status.state == "ready" for status in serving):
        state, detail = "ready", ""
    else:
        state, detail = "degraded", "; ".join(_explain(statuses))
    return msgspec.structs.replace(
        serving[0],
        state=state,
        detail=detail,
        progress=1.0,
        instance="+".join(status.instance for status in there.values()),
        context_length=min(status.context_length for status in serving),
    )


def _explain(statuses: Mapping[str, EngineStatus | None]) -> list[str]:
    """What is wrong with which engine."""
    lines = []
    for label, status in statuses.items():
        if status is None:
            lines.append(f"engine {label} is away")
        elif status.state != "ready":
            lines.append(
                f"engine {label} is {status.state}" + (f": {status.detail}" if status.detail else "")
            )
    return lines


@dataclass(frozen=True)
class Books:
    """What there is to tell of one engine.

    Attributes:
        ledger: what it counted itself.
        late_tokens: see `EngineClient`.
        moved: requests that it lost before they had begun, which another engine was asked for.
        status: see `EngineClient`.
        silence_s: how long nothing was heard of it.
    """

    ledger: EngineLedger
    late_tokens: int = 0
    moved: int = 0
    status: EngineStatus | None = None
    silence_s: float = 0.0

    @property
    def counters(self) -> dict[str, float]:
        """All that only grows."""
        return {
            **self.ledger.counters,
            "late_tokens_total": self.late_tokens,
            "requests_moved_total": self.moved,
        }

    @property
    def gauges(self) -> Mapping[str, float]:
        """As the engine told last; of one that is gone nothing holds any more."""
        return {} if self.status is None else self.ledger.gauges


def total_stats(books: Mapping[str, Books]) -> EngineStats | None:
    """One report for all: sums, and beside them each engine's own samples with the label `engine`.

    Of one engine only its own samples, without a label. Shards are the same for all engines: of what they
    counted the newest, the largest count, is taken. Histogram samples are in one report only. None: no engine
    has ever told anything.
    """
    if not any(each.ledger.counters or each.ledger.gauges or each.ledger.shards for each in books.values()):
        return None
    is_single = len(books) == 1
    observations: defaultdict[str, list[float]] = defaultdict(list)
    shards: defaultdict[str, dict[str, float]] = defaultdict(dict)
    tokens: dict[int, list[int]] = {}
    for label, each in books.items():
        for name, samples in each.ledger.take_observations().items():
            observations[name] += samples
        for shard, values in each.ledger.shards.items():
            _add_shard(shards[shard], values, None if is_single else label)
        for layer, counts in each.ledger.tokens.items():
            known = tokens.get(layer, counts)
            tokens[layer] = [max(pair) for pair in zip_longest(known, counts, fillvalue=0)]
    return EngineStats(
        counters=_sums({label: each.counters for label, each in books.items()}),
        gauges=_gauges(books),
        observations=dict(observations),
        experts=dict(shards),
        expert_tokens=tokens,
    )


def _sums(samples: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Sums by name; of several engines also each one's samples, labelled."""
    sums: defaultdict[str, float] = defaultdict(float)
    for label, values in samples.items():
        for name, value in values.items():
            sums[name] += value
            if len(samples) > 1:
                sums[with_label(name, f'engine="{label}"')] = value
    return dict(sums)


def _gauges(books: Mapping[str, Books]) -> dict[str, float]:
    gauges = _sums({label: each.gauges for label, each in books.items()})
    for name in [name for name in gauges if name.endswith("_perc")]:
        gauges[name] /= sum(name in each.gauges for each in books.values())
    if len(books) > 1:
        for label, each in books.items():
            gauges[f'{UP_GAUGE}{{engine="{label}"}}'] = float(each.status is not None)
            gauges[f'{SILENCE_GAUGE}{{engine="{label}"}}'] = each.silence_s
    return gauges


def _add_shard(known: dict[str, float], values: Mapping[str, float], label: str | None) -> None:
    for name, value in values.items():
        if is_engines_own(name):
            known[name if label is None else with_label(name, f'engine="{label}"')] = value
        else:
            known[name] = max(value, known.get(name, value))


def with_label(name: str, label: str) -> str:
    """A metric's name with a further label in front."""
    base, _, labels = name.rstrip("}").partition("{")
    return f"{base}{{{','.join(filter(None, (label, labels)))}}}"
