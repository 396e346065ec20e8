"""What one engine counted over the gateway's life: counters that only grow, also when the engine restarts."""

from __future__ import annotations

from collections.abc import Mapping

from trimaran.wire import EngineStats

_OWN = ("transport_bytes_total", "expert_service_up")
"""What an engine counts itself about a shard; everything else about it the shard counted, for all engines."""

_COUNTERS = ("_total", "_bucket", "_sum")
"""Ends of the names of a shard's counters, its histograms' included; the other values are gauges."""


class Increases:
    """Sums up how much counters grow, whatever they begin with after their owner's restart.

    Attributes:
        totals: by name; they never fall.
    """

    def __init__(self) -> None:
        self.totals: dict[str, float] = {}
        self._last: dict[str, float] = {}

    def take(self, values: Mapping[str, float]) -> None:
        """A new reading. A value below the last means that its counter began again from zero."""
        for name, value in values.items():
            last = self._last.get(name, 0.0)
            self.totals[name] = self.totals.get(name, 0.0) + (value - last if value >= last else value)
            self._last[name] = value

    def restart(self) -> None:
        """The counters begin again from zero, also those that exceed their last value by the next reading."""
        self._last.clear()


class EngineLedger:
    """The books of one engine. A report that fails to come changes nothing.

    Attributes:
        gauges: as last reported.
        tokens: by layer, how many went to each expert.
    """

    def __init__(self) -> None:
        self.gauges: dict[str, float] = {}
        self.tokens: dict[int, list[int]] = {}
        self._instance = ""
        self._counters = Increases()
        self._observations: dict[str, list[float]] = {}
        self._shards: dict[str, _ShardLedger] = {}
        self._last_tokens: dict[int, list[int]] = {}

    @property
    def counters(self) -> Mapping[str, float]:
        """By name; they never fall."""
        return self._counters.totals

    @property
    def shards(self) -> dict[str, dict[str, float]]:
        """What shards counted, as this engine heard it, and what it counted about them, by shard."""
        return {name: shard.values for name, shard in self._shards.items()}

    def take(self, stats: EngineStats) -> None:
        """A report arrived; reports must be taken in the order in which they were sent."""
        is_another = stats.instance != self._instance
        self._instance = stats.instance
        if is_another:
            self._counters.restart()
        self._counters.take(stats.counters)
        self.gauges = stats.gauges
        for name, samples in stats.observations.items():
            self._observations.setdefault(name, []).extend(samples)
        for name, values in stats.experts.items():
            self._shards.setdefault(name, _ShardLedger()).take(values, is_another=is_another)
        for layer, counts in stats.expert_tokens.items():
            self._take_tokens(layer, counts)

    def take_observations(self) -> dict[str, list[float]]:
        """Histogram samples since the last call, by name: each is given out once."""
        taken, self._observations = self._observations, {}
        return taken

    def _take_tokens(self, layer: int, counts: list[int]) -> None:
        """A sum over the engine and its shards: which of them restarted is unknown, so a fall counts 0."""
        none = [0] * len(counts)
        last, known = self._last_tokens.get(layer, none), self.tokens.get(layer, none)
        if len(known) != len(counts) or len(last) != len(counts):  # another model
            last = known = none
        grown = (max(0, now - before) for now, before in zip(counts, last, strict=True))
        self.tokens[layer] = [total + more for total, more in zip(known, grown, strict=True)]
        self._last_tokens[layer] = counts


class _ShardLedger:
    """One shard's values as an engine reports them."""

    def __init__(self) -> None:
        self._shard = Increases()
        self._engine = Increases()
        self._gauges: dict[str, float] = {}

    @property
    def values(self) -> dict[str, float]:
        """Counters, which never fall, and gauges."""
        return {**self._gauges, **self._shard.totals, **self._engine.totals}

    def take(self, values: Mapping[str, float], *, is_another: bool) -> None:
        """A new reading; `is_another`: the engine restarted, which is nothing to the shard's own counters."""
        if is_another:
            self._engine.restart()
        counted = {name: value for name, value in values.items() if _is_counter(name)}
        self._gauges = {name: value for name, value in values.items() if name not in counted}
        self._engine.take({name: value for name, value in counted.items() if is_engines_own(name)})
        self._shard.take({name: value for name, value in counted.items() if not is_engines_own(name)})


def is_engines_own(name: str) -> bool:
    """Whether an engine counted this about a shard; everything else the shard counted, for all engines."""
    return name.startswith(_OWN)


def _is_counter(name: str) -> bool:
    return name.partition("{")[0].endswith(_COUNTERS)
