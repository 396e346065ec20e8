"""Whole decode steps of a slice of DeepSeek-V3: replayed, launched one by one, and what the host adds."""

from __future__ import annotations

import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import trimaran_kernels
from _gpu_bench import Bench, Stopwatch, reason_of
from _gpu_shard import ShardDims, device_experts
from _gpu_slice import write_slice
from torch import Tensor
from trimaran.gguf import GGUFFile
from trimaran.spec import ModelSpec, read_spec
from trimaran.synth import REAL_SPECS
from trimaran.timeline import Tracer
from trimaran.wire import SamplingParams
from trimaran_attn.device_experts import DeviceExperts
from trimaran_attn.graph.capture import Body, CudaRecorder, Recorder, Replay
from trimaran_attn.graph.inputs import InputShape
from trimaran_attn.graph.steps import StepGraphs
from trimaran_attn.kv_cache import PAGE_SIZE, LatentCache
from trimaran_attn.model.deepseek2 import Deepseek2, build_model
from trimaran_attn.model.modules import register_modules
from trimaran_attn.registry import Registry
from trimaran_attn.request import Request, State
from trimaran_attn.runner import Runner
from trimaran_attn.scheduler import Chunk, StepPlan
from trimaran_attn.weights import Weights

V3 = REAL_SPECS["DeepSeek-V3"]
SLICE = replace(
    V3, n_layers=4, n_dense_layers=1, vocab_size=32768, moe=replace(V3.moe, n_experts=16, n_groups_used=8)
)
"""One dense layer and three with experts, of which the router has fewer."""

CONTEXT, MAX_RUNNING, REPEATS = 4096, 16, 30
IDLE_LIMIT = 0.05


class TimedRecorder:
    """Implements `Recorder`: another one's recordings, and what each replay of them took.

    Args:
        recorder: records and replays.

    Attributes:
        refusals: why recordings failed, of which a step makes only a warning.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.refusals: list[str] = []
        self._recorder = recorder
        self._watches: deque[Stopwatch] = deque(maxlen=REPEATS)

    def record(self, body: Body, device: torch.device) -> Replay:
        """See `Recorder.record`."""
        try:
            replay = self._recorder.record(body, device)
        except RuntimeError as error:
            self.refusals.append(reason_of(error))
            raise

        def timed() -> Tensor:
            watch = Stopwatch(device)
            out = replay()
            watch.stop()
            self._watches.append(watch)
            return out

        return timed

    def median(self) -> float:
        """Seconds on the device, of the last replays: the host's part of a step lies outside."""
        if not self._watches:
            raise RuntimeError("no step was replayed")
        return float(np.median([watch.seconds() for watch in self._watches]))


@dataclass(frozen=True)
class Slice:
    """The slice with its hop, computed in both ways over one cache."""

    spec: ModelSpec
    recorder: TimedRecorder
    launched: Runner
    replayed: Runner


def measure_graphs(
    bench: Bench, spec: ModelSpec = SLICE, record: Callable[[torch.device], Recorder] = CudaRecorder
) -> None:
    """The same logits to the bit where both have the same inputs; then milliseconds of a step."""
    with _slice(bench, spec, record) as model:
        for n in (1, 4, MAX_RUNNING):
            with bench.part(f"graphs: {n} rows"):
                plan = _plan(n)
                _check_replay(bench, model, plan)
                _measure(bench, model, plan)


def _check_replay(bench: Bench, model: Slice, plan: StepPlan) -> None:
    # Copies: a runner's logits are good until its next step.
    logits = [model.replayed.run(plan).logits.clone() for _ in range(3)]
    for reason in model.recorder.refusals:
        bench.fail(f"graphs: {len(plan.chunks)} rows: not recorded: {reason}")
    model.recorder.refusals.clear()
    same = torch.equal(logits[0], logits[1]) and torch.equal(logits[1], logits[2])
    if not same:
        bench.fail(f"graphs: {len(plan.chunks)} rows: a replay differs from the step that was recorded")
    normal = model.launched.run(plan).logits
    error = float((logits[2] - normal).norm() / normal.norm())
    bench.check(f"graph of {len(plan.chunks)} rows", error, 0.1)


def _measure(bench: Bench, model: Slice, plan: StepPlan) -> None:
    n, layers = len(plan.chunks), model.spec.n_layers
    launched = _seconds(lambda: model.launched.run(plan))
    replayed = _seconds(lambda: model.replayed.run(plan))
    bench.row(f"step of {layers} V3 layers, {n} rows, launched one by one", launched * 1e3, "ms")
    bench.row(f"step of {layers} V3 layers, {n} rows, replayed", replayed * 1e3, "ms")
    host = max(0.0, replayed - model.recorder.median())
    device = replayed - host
    bench.row(f"host beside a replayed step, {n} rows", host * 1e6, "us")
    whole = device / layers * V3.n_layers
    share = host / (host + whole)
    bench.row(f"GPU idle between steps of {V3.n_layers} such layers, {n} rows", share, "of the step")
    if share > IDLE_LIMIT and not bench.tiny:
        bench.fail(f"graphs: {n} rows: the GPU is idle for {share:.1%} of a step, {IDLE_LIMIT:.0%} allowed")


@contextmanager
def _slice(bench: Bench, spec: ModelSpec, record: Callable[[torch.device], Recorder]) -> Iterator[Slice]:
    layers = tuple(range(spec.n_dense_layers, spec.n_layers))
    element = "f32" if bench.tiny else "bf16"
    dims = ShardDims(
        spec.hidden_size, spec.moe.n_experts, spec.moe.top_k, layers, max_tokens=64, element=element
    )
    with tempfile.TemporaryDirectory() as folder, device_experts(dims, bench.device) as (experts, _shard):
        path = write_slice(Path(folder) / "slice.gguf", spec)
        with GGUFFile.open(path) as file:
            model = _build(bench, file, experts)
            n_pages = MAX_RUNNING * CONTEXT // PAGE_SIZE
            cache = LatentCache(spec, n_pages + 1, bench.device, "f32" if bench.tiny else "fp8")
            for layer in range(spec.n_layers):
                cache.layer_bytes(layer).zero_()
            widest = InputShape(MAX_RUNNING, CONTEXT, spec.hidden_size, _dtype(bench), n_pages)
            recorder = TimedRecorder(record(bench.device))
            graphs = StepGraphs(
                model,
                cache,
                experts,
                recorder,
                widest=widest,
                devices=(bench.device,),
                tracer=Tracer(),
            )
            yield Slice(
                spec,
                recorder,
                Runner(model, cache, bench.device, experts),
                Runner(model, cache, bench.device, experts, graphs),
            )


def _build(bench: Bench, file: GGUFFile, experts: DeviceExperts) -> Deepseek2:
    spec = read_spec(file)
    registry = Registry(spec, Weights(file), bench.device, _dtype(bench))
    register_modules(
        registry,
        experts=lambda _: experts,
        pool=trimaran_kernels.ThreadPool(trimaran_kernels.usable_cpus(1)),
        linears="dense" if bench.tiny else "gpu",
        mla="absorbed",
        native=False,
    )
    return build_model(spec, registry, bench.device)


def _dtype(bench: Bench) -> torch.dtype:
    return torch.float32 if bench.tiny else torch.bfloat16


def _plan(n: int) -> StepPlan:
    """One token each of n requests, each at the end of its context."""
    pages = CONTEXT // PAGE_SIZE
    return StepPlan(
        tuple(
            Chunk(
                Request(
                    f"r{row}",
                    [row] * (CONTEXT - 1),
                    SamplingParams(),
                    max_tokens=9,
                    output_ids=[row + 1],
                    pages=list(range(row * pages, (row + 1) * pages)),
                    n_computed=CONTEXT - 1,
                    state=State.RUNNING,
                ),
                CONTEXT - 1,
                1,
            )
            for row in range(n)
        )
    )


def _seconds(call: Callable[[], object]) -> float:
    """Median by the wall clock; each call ends with its results on the host."""
    call()
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return float(np.median(times))
