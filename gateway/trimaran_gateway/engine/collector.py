"""The metrics that the engine and its expert services report, for Prometheus."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator

from prometheus_client import Histogram
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from trimaran.wire import EngineStats

from trimaran_gateway.engine.metric_help import help_of
from trimaran_gateway.engine.totals import with_label

PREFIX = "trimaran_"
_MICROSECONDS = (5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.5, 1, 5)
_LABEL = re.compile(r'(\w+)="([^"]*)"')
_ENGINE = re.compile(r'engine="[^"]*",?')
_BUCKET = re.compile(r'(\w+)_bucket\{le="([^"]+)"\}')


class EngineCollector(Collector):
    """Exports the engine's last `EngineStats`; its observations are added up into histograms here.

    A counter's name may carry labels, as in ``name_total{reason="stop"}``. What the gateway measures itself,
    from the client's side, is left out; so is a sum over engines, which Prometheus makes of their samples.

    Args:
        own: names that the gateway exports itself, without the prefix and `_total`.
    """

    def __init__(self, own: frozenset[str]) -> None:
        self._own = own
        self._stats: EngineStats | None = None
        self._histograms: dict[str, Histogram] = {}

    def take(self, stats: EngineStats) -> None:
        """Replace the counters and gauges, add the observations."""
        self._stats = stats
        for name, values in stats.observations.items():
            if name in self._own:
                continue
            if name not in self._histograms:
                self._histograms[name] = Histogram(
                    f"{PREFIX}{name}", help_of(name), buckets=_MICROSECONDS, registry=None
                )
            for value in values:
                self._histograms[name].observe(value)

    def collect(self) -> Iterable[Metric]:
        """Prometheus' metric families."""
        if self._stats is None:
            return
        shards = _Families(self._own)
        times = _ShardHistograms()
        for shard, values in sorted(self._stats.experts.items()):
            rest = times.take(shard, values)
            for name, value in sorted(rest.items()):
                full_name = with_label(name, f'shard="{shard}"')
                shards.add(full_name, value, is_counter=name.partition("{")[0].endswith("_total"))
        families = _Families(self._own | shards.names)
        for name, value in _without_totals(self._stats.counters):
            families.add(name, value, is_counter=True)
        for name, value in _without_totals(self._stats.gauges):
            families.add(name, value, is_counter=False)
        yield from families
        yield from shards
        yield from times
        for histogram in self._histograms.values():
            yield from histogram.collect()


class _Families:
    """Counter and gauge families from names with labels."""

    def __init__(self, skipped: Collection[str]) -> None:
        self._skipped = skipped
        self._families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}

    @property
    def names(self) -> frozenset[str]:
        """Of what there is, without prefix and `_total`."""
        return frozenset(self._families)

    def add(self, full_name: str, value: float, *, is_counter: bool) -> None:
        """Add a sample."""
        name, _, label_text = full_name.partition("{")
        name = name.removesuffix("_total") if is_counter else name
        if name in self._skipped:
            return
        labels = dict(_LABEL.findall(label_text))
        if name not in self._families:
            kind = CounterMetricFamily if is_counter else GaugeMetricFamily
            self._families[name] = kind(f"{PREFIX}{name}", help_of(name), labels=list(labels))
        self._families[name].add_metric(list(labels.values()), value)

    def __iter__(self) -> Iterator[Metric]:
        return iter(self._families.values())


class _ShardHistograms:
    """Histogram families from the buckets among a shard's counters (see `ExpertStats`)."""

    def __init__(self) -> None:
        self._families: dict[str, HistogramMetricFamily] = {}

    def take(self, shard: str, values: dict[str, float]) -> dict[str, float]:
        """Add the shard's histograms; returns what belongs to none."""
        buckets: dict[str, list[tuple[str, float]]] = {}
        rest = dict(values)
        for full_name, value in values.items():
            bucket = _BUCKET.fullmatch(full_name)
            if bucket is not None:
                buckets.setdefault(bucket[1], []).append((bucket[2], value))
                del rest[full_name]
        for name, counts in buckets.items():
            if name not in self._families:
                self._families[name] = HistogramMetricFamily(
                    f"{PREFIX}{name}", help_of(name), labels=["shard"]
                )
            total = rest.pop(f"{name}_sum", 0.0)
            in_order = sorted(counts, key=_bound)
            self._families[name].add_metric([shard], [*in_order], total)
        return rest

    def __iter__(self) -> Iterator[Metric]:
        return iter(self._families.values())


def _bound(bucket: tuple[str, float]) -> float:
    return float(bucket[0])


def _without_totals(values: dict[str, float]) -> Iterator[tuple[str, float]]:
    """Samples that are no sums of others, which have the label `engine`."""
    totals = {_ENGINE.sub("", name).replace("{}", "") for name in values if _ENGINE.search(name)}
    yield from ((name, value) for name, value in values.items() if name not in totals)
