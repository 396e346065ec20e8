"""What the system does now, as one JSON object for the page's live panel.

Counters and histograms are cumulative; the panel turns them into rates. What an engine does not report is
absent, and the panel leaves it out.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import defaultdict
from collections.abc import Mapping
from typing import Protocol

import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from trimaran.wire import EngineStats, EngineStatus

from trimaran_gateway.crashes import ReadCrashes, explain_crashes
from trimaran_gateway.model import ServedModel

MIN_INTERVAL_S = 0.5
_PREFIX = "trimaran_"


class Engine(Protocol):
    """The part of the engine client that is needed here."""

    @property
    def status(self) -> EngineStatus | None:
        """What the engine last said; None while none is connected."""

    @property
    def statuses(self) -> Mapping[str, EngineStatus | None]:
        """The same of each attention service, by label."""

    async def stats(self) -> EngineStats | None:
        """Its counters now; None if it does not answer."""


class Metrics(Protocol):
    """The part of the gateway's metrics that is needed here."""

    registry: CollectorRegistry

    def take_stats(self, stats: EngineStats | None, status: EngineStatus | None) -> None:
        """Remember what the engine reported: its histogram samples come only once."""


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """Facts about the served model. `nbytes` is the size of its file(s), `context_length` in tokens."""

    name: str
    architecture: str = ""
    quantization: str = ""
    parameters: int = 0
    nbytes: int = 0
    context_length: int = 0

    @classmethod
    def of(cls, served: ServedModel) -> Model:
        """The facts of a model that the gateway serves."""
        facts = served.facts
        return cls(
            name=served.name,
            architecture=facts.architecture,
            quantization=facts.quantization,
            parameters=facts.parameters,
            nbytes=facts.nbytes,
            context_length=facts.context_length,
        )


class EngineState(msgspec.Struct, frozen=True, kw_only=True):
    """The engine's state. `context_length` is what it serves now, which may be less than the model's own."""

    state: str
    detail: str = ""
    progress: float = 0.0
    context_length: int = 0


class Buckets(msgspec.Struct, frozen=True, kw_only=True):
    """A cumulative histogram; `le` are the finite upper bounds, `counts` the samples up to each."""

    count: float
    sum: float
    le: list[float]
    counts: list[float]


class LayerLoad(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens that the router gave to each expert of a layer since the start, by expert id."""

    layer: int
    tokens: list[int]


class LiveReport(msgspec.Struct, frozen=True, kw_only=True):
    """One look at the system; `time` is in seconds on a clock that only goes forward."""

    time: float
    model: Model
    engine: EngineState
    engines: dict[str, EngineState] = {}
    crashes: dict[str, str] = {}
    counters: dict[str, float] = {}
    gauges: dict[str, float] = {}
    histograms: dict[str, Buckets] = {}
    shards: dict[str, dict[str, float]] = {}
    heat: list[LayerLoad] = []


class LiveReader:
    """Asks the engine, at most every `MIN_INTERVAL_S`, however many panels are open.

    Args:
        engine: the connection to the attention service.
        metrics: the gateway's metrics; they get the samples that the engine hands out.
        model: the served model.
        crashes: tells how the server's services have fared.
    """

    def __init__(self, engine: Engine, metrics: Metrics, model: Model, crashes: ReadCrashes = dict) -> None:
        self._crashes = crashes
        self._engine = engine
        self._metrics = metrics
        self._model = model
        self._lock = asyncio.Lock()
        self._report: LiveReport | None = None

    async def read(self) -> LiveReport:
        """The newest report; concurrent callers share one question to the engine."""
        async with self._lock:
            if self._report is None or time.monotonic() - self._report.time >= MIN_INTERVAL_S:
                self._report = await self._ask()
            return self._report

    async def _ask(self) -> LiveReport:
        stats = await self._engine.stats()
        status = self._engine.status
        self._metrics.take_stats(stats, status)
        report = LiveReport(
            time=time.monotonic(),
            model=self._model,
            engine=_engine_state(status),
            engines={label: _engine_state(each) for label, each in self._engine.statuses.items()},
            crashes=explain_crashes(self._crashes),
            histograms=histograms(self._metrics.registry),
        )
        if stats is None:
            return report
        return msgspec.structs.replace(
            report,
            counters=stats.counters,
            gauges=stats.gauges,
            shards=stats.experts,
            heat=[LayerLoad(layer=layer, tokens=row) for layer, row in sorted(stats.expert_tokens.items())],
        )


def histograms(registry: CollectorRegistry) -> dict[str, Buckets]:
    """Every histogram that has samples, those of all shards added up, by its name without `trimaran_`."""
    found = (_buckets(family) for family in registry.collect() if family.type == "histogram")
    return {name: buckets for name, buckets in found if buckets.count}


def _engine_state(status: EngineStatus | None) -> EngineState:
    if status is None:
        return EngineState(state="unavailable", detail="the engine is not running")
    return EngineState(
        state=status.state,
        detail=status.detail,
        progress=status.progress,
        context_length=status.context_length,
    )


def _buckets(family: Metric) -> tuple[str, Buckets]:
    total = 0.0
    counts: defaultdict[float, float] = defaultdict(float)
    for sample in family.samples:
        if sample.name.endswith("_sum"):
            total += sample.value
        elif sample.name.endswith("_bucket"):
            counts[float(sample.labels["le"])] += sample.value
    count = counts.pop(math.inf, 0.0)
    le = sorted(counts)
    buckets = Buckets(count=count, sum=total, le=le, counts=[counts[bound] for bound in le])
    return family.name.removeprefix(_PREFIX), buckets
