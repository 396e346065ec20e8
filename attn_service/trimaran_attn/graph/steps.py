"""Which steps are replayed, and what comes out of them.

A bucket's first step runs as it is, over the bucket's own inputs: that compiles and loads its kernels. The
second one is recorded, and from then on steps of that size are replayed: one copy in, one launch, one copy
out. With several GPUs, a step is a recording on each of them, and a copy from each to the next.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
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
from trimaran_attn.model.batch import Batch
from trimaran_attn.placement import entered
from trimaran_attn.scheduler import Chunk, StepPlan

_log = Log(__name__)


class GraphModel(Protocol):
    """What graphs need of a model."""

    def embed(self, token_ids: Tensor) -> Tensor:
        """int64 [T] on the CPU → [T, hidden] float32 there."""
        ...

    def forward_stage(self, stage: int, batch: Batch, cache: LatentCache) -> Tensor:
        """What comes out of a device's layers; of the last device, logits."""
        ...


@dataclass
class Bucket:
    """Steps of one size.

    Attributes:
        inputs: where they read.
        has_run: whether one ran as it is.
        replays: the recorded step, a part for each device.
    """

    inputs: DecodeInputs
    has_run: bool = False
    replays: tuple[Replay, ...] = ()


class StepGraphs:
    """Decode steps over static inputs.

    Args:
        model: computes them.
        cache: its latents.
        hop: to the experts.
        recorder: records and replays.
        widest: the shape of the largest step's inputs.
        devices: that compute, in the order of their layers, none of which defers experts to another device.
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
        devices: Sequence[torch.device],
        tracer: Tracer,
        drawer: Drawer | None = None,
    ) -> None:
        self._model = model
        self._cache = cache
        self._hop = hop
        self._recorder = recorder
        self._widest = widest
        self._devices = tuple(devices)
        self._tracer = tracer
        self._drawer = drawer
        self._sizes = list(bucket_sizes(widest.rows))  # but those that cannot be recorded
        self._buckets: dict[int, Bucket] = {}

    def fits(self, plan: StepPlan) -> bool:
        """Whether a step can be replayed: one token of each request, no scores, nobody who looks on."""
        if not self._sizes or self._tracer.active or not self._hop.is_attached:
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
        for size in reversed(bucket_sizes(self._widest.rows)):
            bucket = self._bucket(size)
            for _ in range(2):
                with self._hop.step():
                    if not self._hop.is_attached:
                        return
                    bucket.inputs.fill((), torch.empty(0, self._widest.hidden_size), {})
                    self._compute(bucket).sum().item()  # the device is done
        seconds = round(time.monotonic() - started, 1)
        _log.info("decode steps recorded", sizes=str(self._sizes), seconds=seconds)

    def _bucket(self, size: int) -> Bucket:
        if size not in self._buckets:
            shape = replace(self._widest, rows=size)
            self._buckets[size] = Bucket(DecodeInputs(shape, self._devices))
        return self._buckets[size]

    def _compute(self, bucket: Bucket) -> Tensor:
        """Device after device: each goes on with what comes out of the one before."""
        parts: list[Replay] = [
            partial(self._part, bucket.inputs, stage) for stage in range(len(self._devices))
        ]
        if not bucket.replays and bucket.has_run:
            bucket.replays = self._record(bucket.inputs.n_rows, parts)
        bucket.has_run = True
        first, *others = bucket.replays or parts
        out = first()
        for stage, part in zip(bucket.inputs.stages[1:], others, strict=True):
            stage.x.copy_(out, non_blocking=True)
            out = part()
        return out

    def _part(self, inputs: DecodeInputs, stage: int) -> Tensor:
        """What is recorded of a device's layers: what comes out of them; on the last one, logits."""
        here, is_last = inputs.stages[stage], stage == len(self._devices) - 1
        with entered(self._devices[stage]), self._hop.padded(here.live):
            out = self._model.forward_stage(stage, here.batch, self._cache)
            if is_last and self._drawer is not None:
                self._drawer(out, here.draws, inputs.tokens)
            return out

    def _record(self, size: int, parts: Sequence[Callable[[], Tensor]]) -> tuple[Replay, ...]:
        """Nothing: from now on such steps are padded to the next larger size, or launched one by one."""
        try:
            recorded = zip(parts, self._devices, strict=True)
            return tuple(self._recorder.record(part, device) for part, device in recorded)
        except RuntimeError as error:
            if size in self._sizes:
                self._sizes.remove(size)
                self._buckets.pop(size, None)  # its inputs are of no use but to the step under way
                reason = str(error).partition("\n")[0]
                _log.warning("decode steps of a size cannot be recorded", rows=size, reason=reason)
            return ()


def _is_decode(chunk: Chunk) -> bool:
    return chunk.length == 1 and chunk.samples and not chunk.scored
