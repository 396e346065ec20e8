"""Statuses and counters of several engines as those of one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import msgspec
from trimaran.wire import EngineStats, EngineStatus

from trimaran_gateway.engine.interface import READY_STATES

READY_GAUGE = "attention_service_up"
_OWN = ("transport_bytes_total", "expert_service_up")
"""What an engine counts itself about a shard; everything else about it the shard counted, for all engines."""


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


def total_stats(answers: Mapping[str, EngineStats | None]) -> EngineStats | None:
    """One report for all: sums, and beside them each engine's own samples with the label `engine`.

    Of one engine it is its report, unchanged. Shards are the same for all engines: of what they counted the
    newest, the largest count, is taken.
    """
    there = {label: stats for label, stats in answers.items() if stats is not None}
    if len(answers) == 1 or not there:
        return next(iter(there.values()), None)
    counters: defaultdict[str, float] = defaultdict(float)
    gauges: defaultdict[str, float] = defaultdict(float)
    observations: defaultdict[str, list[float]] = defaultdict(list)
    shards: defaultdict[str, dict[str, float]] = defaultdict(dict)
    tokens: dict[int, list[int]] = {}
    for label, stats in there.items():
        for sums, values in ((counters, stats.counters), (gauges, stats.gauges)):
            for name, value in values.items():
                sums[name] += value
                sums[with_label(name, f'engine="{label}"')] = value
        for name, samples in stats.observations.items():
            observations[name] += samples
        for shard, values in stats.experts.items():
            _add_shard(shards[shard], values, label)
        for layer, counts in stats.expert_tokens.items():
            known = tokens.get(layer, counts)
            tokens[layer] = [max(pair) for pair in zip(known, counts, strict=True)]
    for name in [name for name in gauges if name.endswith("_perc")]:
        gauges[name] /= len(there)
    for label, answer in answers.items():
        gauges[f'{READY_GAUGE}{{engine="{label}"}}'] = float(answer is not None)
    return EngineStats(
        counters=dict(counters),
        gauges=dict(gauges),
        observations=dict(observations),
        experts=dict(shards),
        expert_tokens=tokens,
    )


def _add_shard(known: dict[str, float], values: Mapping[str, float], label: str) -> None:
    for name, value in values.items():
        if name.startswith(_OWN):
            known[with_label(name, f'engine="{label}"')] = value
        else:
            known[name] = max(value, known.get(name, value))


def with_label(name: str, label: str) -> str:
    """A metric's name with a further label in front."""
    base, _, labels = name.rstrip("}").partition("{")
    return f"{base}{{{','.join(filter(None, (label, labels)))}}}"
