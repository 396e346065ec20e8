"""Prometheus metrics: the gateway's own latencies, and what the engine and its experts report."""

from __future__ import annotations

import time
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from trimaran.wire import EngineStats, EngineStatus

from trimaran_gateway.engine.collector import PREFIX, EngineCollector
from trimaran_gateway.output.events import FinishReason, TokenUsage

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_TOKENS = tuple(float(1 << power) for power in range(18))

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class GatewayMetrics:
    """All metrics of one gateway, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.ttft = self._histogram("time_to_first_token_seconds", "From request to its first token")
        self.itl = self._histogram("inter_token_latency_seconds", "Between two tokens of a request")
        self.per_token = self._histogram(
            "request_time_per_output_token_seconds", "Mean time per token after the first"
        )
        self.e2e = self._histogram("e2e_request_latency_seconds", "From request to its last token")
        self.queue = self._histogram("request_queue_time_seconds", "Waiting in the engine")
        self.prefill = self._histogram("request_prefill_time_seconds", "Reading the prompt")
        self.decode = self._histogram("request_decode_time_seconds", "Generating")
        self.prompt_tokens = self._histogram("request_prompt_tokens", "Prompt length in tokens", _TOKENS)
        self.generated_tokens = self._histogram(
            "request_generation_tokens", "Answer length in tokens", _TOKENS
        )
        self.success = Counter(
            f"{PREFIX}request_success", "Answered requests", ["finished_reason"], registry=self.registry
        )
        self.aborted = Counter(
            f"{PREFIX}requests_aborted",
            "Requests that ended without an answer: the client left, or an error",
            registry=self.registry,
        )
        self.http = Counter(
            f"{PREFIX}http_requests", "HTTP answers", ["path", "status"], registry=self.registry
        )
        self.in_flight = Gauge(
            f"{PREFIX}gateway_requests_in_flight", "Generations under way", registry=self.registry
        )
        self.engine_up = Gauge(
            f"{PREFIX}engine_up", "1 while the engine takes requests", registry=self.registry
        )
        own = {family.name.removeprefix(PREFIX) for family in self.registry.collect()}
        self._engine = EngineCollector(frozenset(own))
        self.registry.register(self._engine)

    def start_request(self, prompt_tokens: int) -> RequestTimer:
        """A timer for a generation that begins now."""
        return RequestTimer(self, prompt_tokens)

    def take_stats(self, stats: EngineStats | None, status: EngineStatus | None) -> None:
        """Remember what the engine reported; None: it did not answer, and its last counts stay."""
        self.engine_up.set(status is not None and status.state in ("ready", "degraded"))
        if stats is not None:
            self._engine.take(stats)

    def expose(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(_WithoutCreated(self.registry))

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
        return Histogram(f"{PREFIX}{name}", text, buckets=buckets, registry=self.registry)


class _WithoutCreated(Collector):
    """A registry's metrics without the `_created` gauges, which repeat the start time for every series."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterable[Metric]:
        """The families; they are made anew for each call, so they may be changed."""
        for family in self._registry.collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family


class RequestTimer:
    """Times one generation. `generated` counts its tokens; times are in seconds."""

    def __init__(self, metrics: GatewayMetrics, prompt_tokens: int) -> None:
        self._metrics = metrics
        self._prompt_tokens = prompt_tokens
        self._started = self._last = time.perf_counter()
        self._first: float | None = None
        self._is_finished = False
        self.generated = 0
        metrics.in_flight.inc()

    @property
    def prefill_s(self) -> float:
        """From the start to the first token."""
        return (self._first or time.perf_counter()) - self._started

    @property
    def decode_s(self) -> float:
        """From the first token to the last."""
        return self._last - self._first if self._first is not None else 0.0

    def tokens(self, count: int) -> None:
        """`count` tokens arrived together."""
        if not count:
            return
        now = time.perf_counter()
        if self._first is None:
            self._first = now
            self._metrics.ttft.observe(now - self._started)
        else:
            for _ in range(count):
                self._metrics.itl.observe((now - self._last) / count)
        self._last = now
        self.generated += count

    def finished(self, reason: FinishReason, usage: TokenUsage) -> None:
        """The answer is whole."""
        self._is_finished = True
        metrics = self._metrics
        metrics.success.labels(reason).inc()
        metrics.e2e.observe(time.perf_counter() - self._started)
        metrics.prompt_tokens.observe(self._prompt_tokens)  # not of what is refused, however long it is
        metrics.generated_tokens.observe(self.generated)
        metrics.queue.observe(usage.queue_s)
        metrics.prefill.observe(usage.prefill_s)
        metrics.decode.observe(usage.decode_s)
        if self.generated > 1:
            metrics.per_token.observe(self.decode_s / (self.generated - 1))

    def close(self) -> None:
        """The generation is over, one way or another."""
        self._metrics.in_flight.dec()
        if not self._is_finished:
            self._metrics.aborted.inc()
