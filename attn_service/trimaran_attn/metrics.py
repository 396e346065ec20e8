"""What the engine counts and measures, under the names of the exported metrics (without `trimaran_`)."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock

from trimaran.wire import EngineStats

from trimaran_attn.request import Request
from trimaran_attn.scheduler import Scheduler

ANSWERED = frozenset({"stop", "length", "abort", "deadline"})
"""How requests end that the engine served; the other reasons are failures."""

MAX_SAMPLES = 4096
"""Samples kept per histogram until somebody asks for them; the oldest go first."""


@dataclass(frozen=True)
class Tally:
    """What the experts that this process holds did so far.

    Attributes:
        tokens: by layer, tokens of each expert that were computed here.
        share: of all routes, those computed here.
        nbytes, n_experts: of what is held.
    """

    tokens: dict[int, list[int]] = field(default_factory=dict)
    share: float = 0.0
    nbytes: int = 0
    n_experts: int = 0

    @property
    def counters(self) -> dict[str, float]:
        """By the names of the exported metrics."""
        return {"gpu_expert_tokens_total": float(sum(map(sum, self.tokens.values())))}

    @property
    def gauges(self) -> dict[str, float]:
        """By the names of the exported metrics."""
        return {
            "gpu_expert_share": self.share,
            "gpu_expert_bytes": float(self.nbytes),
            "gpu_experts": float(self.n_experts),
        }


class Meter:
    """Histogram samples since the last stats message. Threads may share it."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._samples: dict[str, deque[float]] = {}

    def observe(self, name: str, value: float) -> None:
        """Add a sample."""
        with self._lock:
            self._samples.setdefault(name, deque(maxlen=MAX_SAMPLES)).append(value)

    def take(self) -> dict[str, list[float]]:
        """All samples, and forget them."""
        with self._lock:
            samples, self._samples = self._samples, {}
        return {name: list(values) for name, values in samples.items()}

    def observe_token(self, request: Request, previous_at: float | None, now: float) -> None:
        """A token was drawn; the one before it at `previous_at`."""
        if previous_at is None:
            self.observe("time_to_first_token_seconds", now - request.arrived_at)
        else:
            self.observe("inter_token_latency_seconds", now - previous_at)

    def observe_end(self, request: Request, now: float) -> None:
        """A request ended, for whatever reason."""
        usage = request.usage(now)
        self.observe("e2e_request_latency_seconds", now - request.arrived_at)
        self.observe("request_queue_time_seconds", usage.queue_s)
        self.observe("request_prefill_time_seconds", usage.prefill_s)
        self.observe("request_decode_time_seconds", usage.decode_s)
        self.observe("request_prompt_tokens", usage.prompt_tokens)
        self.observe("request_generation_tokens", usage.generated_tokens)
        if usage.generated_tokens > 1:
            per_token = usage.decode_s / (usage.generated_tokens - 1)
            self.observe("request_time_per_output_token_seconds", per_token)


def engine_stats(scheduler: Scheduler, meter: Meter, residents: Tally) -> EngineStats:
    """The engine's counters and gauges, and the samples since the last call; with the residents', if any."""
    counted, pages = scheduler.counters, scheduler.pages
    counters: dict[str, float] = {
        "prompt_tokens_total": counted.prompt_tokens,
        "generation_tokens_total": counted.generated_tokens,
        "prompt_tokens_cached_total": counted.cached_tokens,
        "prefix_cache_queries_total": counted.queried_tokens,
        "prefix_cache_hits_total": counted.hit_tokens,
        "num_preemptions_total": counted.preemptions,
    }
    for reason, count in counted.finished.items():
        answered = f'request_success_total{{finished_reason="{reason}"}}'
        counters[answered if reason in ANSWERED else f'request_failure_total{{reason="{reason}"}}'] = count
    gauges = {
        "num_requests_running": float(len(scheduler.running)),
        "num_requests_waiting": float(len(scheduler.waiting)),
        "kv_cache_usage_perc": 1 - pages.n_free / pages.n_pages,
    }
    if residents.n_experts:
        counters |= residents.counters
        gauges |= residents.gauges
    return EngineStats(
        counters=counters, gauges=gauges, observations=meter.take(), expert_tokens=residents.tokens
    )


def add_counts(a: Mapping[int, Sequence[int]], b: Mapping[int, Sequence[int]]) -> dict[int, list[int]]:
    """Counts by layer and expert, summed; a layer that one of them lacks is the other's."""
    return {layer: _sum(a.get(layer), b.get(layer)) for layer in sorted({*a, *b})}


def _sum(a: Sequence[int] | None, b: Sequence[int] | None) -> list[int]:
    if a is None or b is None:
        return list(a or b or ())
    return [x + y for x, y in zip(a, b, strict=True)]
