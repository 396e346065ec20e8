"""Which steps are replayed, and what comes out of them.

A bucket's first step runs as it is, over the bucket's own inputs: that compiles and loads its kernels. The
second one is recorded, and from then on steps of that size are replayed: one copy in, one launch, one copy
out.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor
from trimaran.telemetry import Log
from trimaran.timeline import Tracer

from trimaran_attn.drawing import Computed, Drawer
from trimaran_attn.graph.buckets import bucket_of, bucket_sizes
from trimaran_attn.graph.capture import Recorder, Replay
from trimaran_attn.graph.inputs import DecodeInputs, InputShape
from trimaran_attn.hop_steps import HopSteps
from trimaran_attn.kv_cache import LatentCache
from trimaran_attn.model.batch import Batch, Output
from trimaran_attn.scheduler import Chunk, StepPlan

_log = Log(__name__)


class GraphModel(Protocol):
    """What graphs need of a model."""

    def embed(self, token_ids: Tensor) -> Tensor:
        """int64 [T] on the CPU → [T, hidden] float32 there."""
        ...

    def forward(self, batch: Batch, cache: LatentCache) -> Output:
        """Logits of the batch's sampled rows."""
        ...


@dataclass
class Bucket:
    """Steps of one size.

    Attributes:
        inputs: where they read.
        has_run: whether one ran as it is.
        replay: the recorded step.
    """

    inputs: DecodeInputs
    has_run: bool = False
    replay: Replay | None = None


class StepGraphs:
    """Decode steps over static inputs.

    Args:
        model: computes them.
        cache: its latents.
        hop: to the experts.
        recorder: records and replays.
        widest: the shape of the largest step's inputs.
        device: that computes.
        tracer: while it records who does what, steps are not replayed: a graph has no spans.
        drawer: draws tokens at the end of a step; without it all logits are for the host.
    """

    def __init__(
        self,
        model: GraphModel,
        cache: LatentCache,
        hop: HopSteps,
        recorder: Recorder,
        *,
        widest: InputShape,
        device: torch.device,
        tracer: Tracer,
        drawer: Drawer | None = None,
    ) -> None:
        self._model = model
        self._cache = cache
        self._hop = hop
        self._recorder = recorder
        self._widest = widest
        self._device = device
        self._tracer = tracer
        self._drawer = drawer
        self._sizes = bucket_sizes(widest.rows)
        self._buckets: dict[int, Bucket] = {}
        self._is_refused = False

    def fits(self, plan: StepPlan) -> bool:
        """Whether a step can be replayed: one token of each request, no scores, nobody who looks on."""
        if self._is_refused or self._tracer.active or not self._hop.is_attached:
            return False
        n = len(plan.chunks)
        return 0 < n <= self._sizes[-1] and all(_is_decode(chunk) for chunk in plan.chunks)

    def run(self, plan: StepPlan) -> Computed:
        """A step that fits; what it computed is good until the next one."""
        bucket = self._bucket(bucket_of(len(plan.chunks), self._sizes))
        token_ids = [next(chunk.request.tokens(chunk.start, chunk.start + 1)) for chunk in plan.chunks]
        bucket.inputs.fill(plan.chunks, self._model.embed(torch.tensor(token_ids)), plan.draws)
        n = len(plan.chunks)
        logits = self._compute(bucket)[:n]
        return Computed(logits, None if self._drawer is None else bucket.inputs.tokens[:n])

    def warm_up(self) -> None:
        """Run and record a step of padding in each size, the largest first, whose memory the others reuse."""
        started = time.monotonic()
        for size in reversed(self._sizes):
            bucket = self._bucket(size)
            for _ in range(2):
                with self._hop.step():
                    if self._is_refused or not self._hop.is_attached:
                        return
                    bucket.inputs.fill((), torch.empty(0, self._widest.hidden_size), {})
                    self._compute(bucket).sum().item()  # the device is done
        _log.info(
            "decode steps recorded", sizes=str(self._sizes), seconds=round(time.monotonic() - started, 1)
        )

    def _bucket(self, size: int) -> Bucket:
        if size not in self._buckets:
            shape = replace(self._widest, rows=size)
            self._buckets[size] = Bucket(DecodeInputs(shape, self._device))
        return self._buckets[size]

    def _compute(self, bucket: Bucket) -> Tensor:
        body = self._body(bucket.inputs)
        if bucket.replay is None and bucket.has_run and not self._is_refused:
            bucket.replay = self._record(body)
        if bucket.replay is not None:
            return bucket.replay()
        bucket.has_run = True
        return body()

    def _body(self, inputs: DecodeInputs) -> Callable[[], Tensor]:
        def body() -> Tensor:
            with self._hop.padded(inputs.live):
                logits = self._model.forward(inputs.batch, self._cache).logits
            if self._drawer is not None:
                self._drawer(logits, inputs.draws, inputs.tokens)
            return logits

        return body

    def _record(self, body: Callable[[], Tensor]) -> Replay | None:
        try:
            return self._recorder.record(body)
        except RuntimeError as error:
            self._is_refused = True
            reason = str(error).partition("\n")[0]
            _log.warning("decode steps cannot be recorded, they are launched one by one", reason=reason)
            return None


def _is_decode(chunk: Chunk) -> bool:
    return chunk.length == 1 and chunk.samples and not chunk.scored
