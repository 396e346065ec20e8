"""Long prompts: a part of each layer's experts streamed through the GPU, the rest asked for as ever."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from trimaran.errors import TrimaranError
from trimaran.telemetry import Log

from trimaran_attn.experts import SKIPPED, Experts
from trimaran_attn.gpu_experts.resident import ExpertFile
from trimaran_attn.gpu_experts.stream_cost import (
    LEAST_TOKENS,
    StreamRates,
    choose_streamed,
    streaming_threshold,
)
from trimaran_attn.gpu_experts.streamer import Streamer

_log = Log(__name__)


@dataclass
class StreamPolicy:
    """When streaming pays, known from the first long chunk on.

    Attributes:
        top_k: experts of a token.
        most: tokens of the longest chunk.
        measure: finds the rates, with a layer's experts and its file; on a chunk long enough.
        threshold: tokens from which on streaming is considered.
    """

    top_k: int
    most: int
    measure: Callable[[Experts, ExpertFile, Tensor], StreamRates]
    threshold: int = LEAST_TOKENS
    rates: StreamRates | None = field(default=None, init=False)

    def rates_for(self, experts: Experts, file: ExpertFile, x: Tensor) -> StreamRates:
        """Measured once, with a line in the log."""
        if self.rates is None:
            self.rates = self.measure(experts, file, x)
            pays_from = streaming_threshold(file.n_experts, self.top_k, file.cost, self.rates, self.most)
            self.threshold = max(self.threshold, pays_from)
            pays = f"from {self.threshold} tokens" if self.threshold <= self.most else "never"
            _log.info(
                "streaming experts through the GPU pays " + pays,
                copy_gb_s=round(self.rates.copy / 1e9, 2),
                gpu_tmac_s=round(self.rates.gpu / 1e12, 2),
                cpu_gb_s=round(self.rates.cpu_read / 1e9, 2),
                cpu_tmac_s=round(self.rates.cpu / 1e12, 3),
            )
        return self.rates


@dataclass(frozen=True)
class StreamTicket:
    """The other's ticket, and the streamed experts' sum, float32 [T, hidden], if any were."""

    rest: Any
    ours: Tensor | None


class StreamedExperts:
    """Implements `Experts` for one layer.

    Args:
        inner: is asked with the streamed experts' places skipped.
        file: the layer's experts in the model file.
        streamer, policy: shared by the layers of a device.
    """

    def __init__(self, inner: Experts, file: ExpertFile, streamer: Streamer, policy: StreamPolicy) -> None:
        self._inner = inner
        self._file = file
        self._streamer = streamer
        self._policy = policy

    def submit(self, layer: int, x: Tensor, ids: Tensor, weights: Tensor) -> StreamTicket:
        """See `Experts.submit`. Returns when the streamed experts' last copy has begun."""
        if len(x) < self._policy.threshold:
            return StreamTicket(self._inner.submit(layer, x, ids, weights), None)
        rates = self._policy.rates_for(self._inner, self._file, x)
        chosen = choose_streamed(self._count(ids), self._file.cost, rates)
        if not chosen or len(x) < self._policy.threshold:
            return StreamTicket(self._inner.submit(layer, x, ids, weights), None)
        theirs = torch.isin(ids, torch.tensor(chosen, dtype=ids.dtype, device=ids.device))
        rest = self._inner.submit(layer, x, torch.where(theirs, SKIPPED, ids), weights)
        try:
            return StreamTicket(rest, self._streamer.run(self._file, chosen, x, ids, weights))
        except BaseException:
            with suppress(TrimaranError):  # its slot would be lost to later calls
                self._inner.wait(rest)
            raise

    def wait(self, ticket: StreamTicket) -> Tensor:
        """See `Experts.wait`: the others' sum, then the streamed ones' added to it."""
        rest = self._inner.wait(ticket.rest)
        return rest if ticket.ours is None else rest.to(ticket.ours.device, torch.float32) + ticket.ours

    def _count(self, ids: Tensor) -> list[int]:
        """Tokens of each expert; waits for the device."""
        counts: list[int] = torch.bincount(
            ids.flatten().long() + 1, minlength=self._file.n_experts + 1
        ).tolist()
        return counts[1:]


class RateMeter:
    """Measures what `StreamRates` holds, on a chunk's own tokens; some hundred milliseconds.

    Args:
        streamer: is measured.
        top_k: experts of a token.
        synchronize: waits for the device.
        clock: seconds.
    """

    FEW_TOKENS = 8

    def __init__(
        self,
        streamer: Streamer,
        top_k: int,
        synchronize: Callable[[], None],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._streamer = streamer
        self._top_k = top_k
        self._synchronize = synchronize
        self._clock = clock

    def __call__(self, experts: Experts, file: ExpertFile, x: Tensor) -> StreamRates:
        """See `StreamRates`."""
        copy, gpu = self._gpu_rates(file, x)
        few, many = x[: self.FEW_TOKENS], x[:LEAST_TOKENS]
        few_s = self._seconds(lambda: self._ask(experts, file, few))
        many_s = self._seconds(lambda: self._ask(experts, file, many))
        used = min(file.n_experts, len(few) * self._top_k)
        return StreamRates(
            copy=copy,
            gpu=gpu,
            cpu_read=used * file.cost.nbytes / few_s,
            cpu=len(many) * self._top_k * file.cost.weights / many_s,
        )

    def _gpu_rates(self, file: ExpertFile, x: Tensor) -> tuple[float, float]:
        """Bytes a second of copying several buffers full, multiply-adds a second of one."""
        some = list(range(min(file.n_experts, 16)))
        ids, weights = self._route(file, x)
        stacks = list(self._streamer.stacks(file, some[:1]))

        def stream() -> None:
            for _ in self._streamer.stacks(file, some):
                pass

        def multiply() -> None:
            for stack, _ in stacks:
                one = torch.zeros(file.n_experts, dtype=torch.int32, device=x.device)
                self._streamer.compute(x, ids[:, :1].contiguous(), weights[:, :1].contiguous(), one, stack)

        copy_s, multiply_s = self._seconds(stream), self._seconds(multiply)
        return len(some) * file.cost.nbytes / copy_s, len(x) * file.cost.weights / multiply_s

    def _ask(self, experts: Experts, file: ExpertFile, x: Tensor) -> None:
        experts.wait(experts.submit(file.layer, x, *self._route(file, x)))

    def _route(self, file: ExpertFile, x: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens that go round all experts."""
        places = torch.arange(len(x) * self._top_k, dtype=torch.int32, device=x.device) % file.n_experts
        ids = places.view(len(x), self._top_k)
        return ids, torch.full(ids.shape, 1 / self._top_k, device=x.device)

    def _seconds(self, work: Callable[[], None]) -> float:
        """Of the second time; the first warms caches and compiles."""
        for _ in range(2):
            self._synchronize()
            start = self._clock()
            work()
            self._synchronize()
            seconds = self._clock() - start
        return max(seconds, 1e-9)
