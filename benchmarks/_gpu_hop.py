"""The hop from the device: right, bounded, and what it costs a layer when the experts answer at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
import torch
from _gpu_bench import Bench, Stopwatch
from _gpu_shard import ShardDims, device_experts, random_call
from trimaran.errors import KernelError, PeerError
from trimaran_attn.device_experts import DeviceExperts
from trimaran_attn.graph.capture import CudaRecorder
from trimaran_kernels.gpu.hop_reference import sent_reference

LAYERS, STEPS = 58, 20
BATCHES = (1, 4, 16)
ALLOWED_US = 20.0
"""Of a layer's hop, when the experts answer at once."""
V3 = ShardDims(7168, 8, 8, (3,), 512, "bf16")
SMALL = ShardDims(300, 8, 3, (3,), 8, "bf16")
LIMIT = 1e-2
LONGEST_FAILURE_S = 5.0


def check_hop(bench: Bench) -> None:
    """Answers, refusals, a shard that is silent and one that is lost."""
    dims = SMALL if bench.tiny else V3
    for n in (1, 3) if bench.tiny else (1, 2, 16, 300):
        with bench.part(f"hop {n} tokens"):
            _check_answer(bench, dims, n)
    with bench.part("hop refused"):
        _check_refusal(bench, dims)
    for lost in (False, True):
        with bench.part("hop lost" if lost else "hop silent"):
            _check_silence(bench, dims, lost=lost)


def measure_hop(bench: Bench) -> None:
    """Layers one after the other, as a step has them: in a CUDA graph, and launched one by one."""
    for n in BATCHES:
        with bench.part(f"speed of hop, {n} tokens"), device_experts(V3, bench.device) as (experts, _shard):
            x, ids, weights = random_call(n, V3, bench.device, torch.bfloat16)
            ids.fill_(-1)  # skipped: the tensors cross, nothing is computed
            _measure(bench, experts, (x, ids, weights))


def _measure(
    bench: Bench, experts: DeviceExperts, call: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
) -> None:
    def layers() -> torch.Tensor:
        for _ in range(LAYERS):
            y = experts.wait(experts.submit(V3.layers[0], *call))
        return y

    name = f"hop from device, {len(call[0])} tokens"
    launched = _seconds_a_layer(bench, experts, layers)
    bench.row(f"{name}, launched one by one", launched * 1e6, "us")
    live = torch.full((1,), len(call[0]), dtype=torch.int32, device=bench.device)
    with experts.padded(live):
        with experts.step():
            layers()  # compiled and loaded, as it is recorded
        replay = CudaRecorder(bench.device).record(layers, bench.device)
    replayed = _seconds_a_layer(bench, experts, replay)
    bench.row(f"{name}, replayed", replayed * 1e6, "us", floor=ALLOWED_US)


def _seconds_a_layer(bench: Bench, experts: DeviceExperts, run: Callable[[], object]) -> float:
    """Median of some steps, by the device's clock."""
    seconds = []
    for _ in range(STEPS):
        with experts.step():
            watch = Stopwatch(bench.device)
            run()
            watch.stop()
            seconds.append(watch.seconds())
    return float(np.median(seconds)) / LAYERS


def _check_answer(bench: Bench, dims: ShardDims, n: int) -> None:
    dtype = torch.float32 if bench.tiny else torch.bfloat16
    with device_experts(dims, bench.device) as (experts, shard):
        x, ids, weights = random_call(n, dims, bench.device, dtype)
        with experts.step():
            got = [experts.wait(experts.submit(dims.layers[0], x, ids, weights)) for _ in range(3)][-1].cpu()
        sent = sent_reference(x.cpu(), is_bf16=True)
        y = torch.empty_like(sent)
        status = shard.engine.forward(
            dims.layers[0], sent.numpy(), ids.cpu().numpy(), weights.cpu().numpy(), y.numpy()
        )
        if status != 0:
            raise RuntimeError(f"the reference refuses {n} tokens: status {status}")
        expected = y.view(torch.bfloat16).float()
        error = float((got.float() - expected).norm() / expected.norm())
        bench.check(f"hop {n} tokens", error, LIMIT)


def _check_refusal(bench: Bench, dims: ShardDims) -> None:
    with device_experts(dims, bench.device) as (experts, _shard):
        x, ids, weights = random_call(2, dims, bench.device, torch.float32)
        ids[1, 0] = dims.n_experts
        try:
            with experts.step():
                experts.wait(experts.submit(dims.layers[0], x, ids, weights)).sum().item()
        except KernelError:
            ids[1, 0] = 0
            with experts.step():
                experts.wait(experts.submit(dims.layers[0], x, ids, weights)).sum().item()
        else:
            bench.fail("hop: a refusal was not told")


def _check_silence(bench: Bench, dims: ShardDims, *, lost: bool) -> None:
    """No worker: a timeout, or sooner, when the host says that the shard is lost."""
    what = "a lost shard" if lost else "a silent shard"
    with device_experts(dims, bench.device, serves=False, timeout_s=60.0 if lost else 0.5) as (
        experts,
        shard,
    ):
        call = random_call(2, dims, bench.device, torch.float32)
        with experts.step():
            pass  # registered
        if lost:
            threading.Timer(0.3, shard.abandon).start()
        began = time.monotonic()
        try:
            with experts.step():
                experts.wait(experts.submit(dims.layers[0], *call)).sum().item()
            bench.fail(f"hop: {what} was not noticed")
        except PeerError:
            seconds = time.monotonic() - began
            if bench.tiny:
                return  # there a look takes as long as it takes
            bench.row(f"hop: {what} is noticed after", seconds, "s")
            if seconds > LONGEST_FAILURE_S:
                bench.fail(f"hop: {what} was noticed after {seconds:.1f} s only")
