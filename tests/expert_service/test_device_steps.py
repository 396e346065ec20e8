"""Whole decode steps with a device's hops, recorded and replayed, over a real expert service that dies."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import interpreted
import numpy as np
import pytest
import torch
from replaying import CallingRecorder, build_dense_experts
from trimaran.errors import PeerError
from trimaran.gguf import GGUFFile
from trimaran.timeline import Tracer
from trimaran.wire import SamplingParams
from trimaran_attn.device_experts import DeviceExperts
from trimaran_attn.experts import Experts
from trimaran_attn.experts_client import ExpertsClient
from trimaran_attn.experts_link import RemoteExperts
from trimaran_attn.graph.inputs import InputShape
from trimaran_attn.graph.steps import StepGraphs
from trimaran_attn.kv_cache import LatentCache
from trimaran_attn.metrics import Meter
from trimaran_attn.model.deepseek2 import Deepseek2, build_model
from trimaran_attn.model.modules import register_modules
from trimaran_attn.pinned import SameMemory
from trimaran_attn.registry import Registry, Site
from trimaran_attn.request import Request, State
from trimaran_attn.runner import Runner
from trimaran_attn.scheduler import Chunk, StepPlan
from trimaran_attn.weights import Weights
from trimaran_kernels import ThreadPool, usable_cpus

CPU = torch.device("cpu")
N_PAGES = 4
pytestmark = pytest.mark.skipif(interpreted.ON_GPU, reason="memory of the CPU: `make gpu-check`")


@pytest.fixture(autouse=True)
def _overflows_are_infinite() -> Iterator[None]:
    with np.errstate(all="ignore"):
        yield


def build(model, experts: Callable[[Site], Experts]) -> Deepseek2:
    registry = Registry(model.spec, Weights(GGUFFile.open(model.path)), CPU, torch.float32)
    pool = ThreadPool(usable_cpus(1))
    register_modules(registry, experts=experts, pool=pool, linears="dense", mla="absorbed", native=False)
    return build_model(model.spec, registry, CPU)


def new_cache(model) -> LatentCache:
    cache = LatentCache(model.spec, N_PAGES + 1, CPU, "f32")
    for layer in range(model.spec.n_layers):
        cache.layer_bytes(layer).zero_()
    return cache


def plan_of(*tokens: int) -> StepPlan:
    """The first token of so many requests, as if drawn."""
    requests = [
        Request(
            f"r{row}",
            [],
            SamplingParams(),
            max_tokens=9,
            pages=[row],
            output_ids=[token],
            state=State.RUNNING,
        )
        for row, token in enumerate(tokens)
    ]
    return StepPlan(tuple(Chunk(request, 0, 1) for request in requests))


def test_replayed_steps_survive_their_experts(
    model, start_experts, make_client: Callable[..., ExpertsClient], wait_until
) -> None:
    """What was recorded before the experts died is replayed with the new ones: nothing is recorded again."""
    service = start_experts()
    client = make_client(device_slots=2)
    client.connect()
    meter, recorder = Meter(), CallingRecorder()
    experts = DeviceExperts(
        client, RemoteExperts(client, meter), meter, SameMemory(), devices=(CPU,), n_slots=2, timeout_s=1000.0
    )
    network, cache = build(model, lambda _: experts), new_cache(model)
    widest = InputShape(4, 128, model.spec.hidden_size, torch.float32, N_PAGES)
    graphs = StepGraphs(network, cache, experts, recorder, widest=widest, devices=(CPU,), tracer=Tracer())
    runner = Runner(network, cache, CPU, experts, graphs)
    plan = plan_of(5, 6, 7)
    reference = Runner(build(model, build_dense_experts), new_cache(model), CPU).run(plan).logits

    first = [runner.run(plan).logits for _ in range(4)]
    torch.testing.assert_close(first[0], reference, rtol=1e-3, atol=1e-3)
    assert all(torch.equal(logits, first[2]) for logits in first[1:])
    assert (recorder.recorded, recorder.replayed) == (1, 3)

    service.freeze()
    threading.Timer(0.3, service.process.kill).start()
    with pytest.raises(PeerError, match="went away"):
        runner.run(plan)
    start_experts().wait_for("ready")
    wait_until(client.ready, 20)
    again = runner.run(plan).logits
    assert torch.equal(again, first[2])
    assert recorder.recorded == 1


def test_steps_are_recorded_before_the_first_request(
    model, start_experts, make_client: Callable[..., ExpertsClient]
) -> None:
    """Rows of padding alone: no token crosses."""
    start_experts()
    client = make_client(device_slots=2)
    client.connect()
    meter, recorder = Meter(), CallingRecorder()
    experts = DeviceExperts(
        client, RemoteExperts(client, meter), meter, SameMemory(), devices=(CPU,), n_slots=2, timeout_s=1000.0
    )
    network, cache = build(model, lambda _: experts), new_cache(model)
    widest = InputShape(2, 128, model.spec.hidden_size, torch.float32, N_PAGES)
    graphs = StepGraphs(network, cache, experts, recorder, widest=widest, devices=(CPU,), tracer=Tracer())
    Runner(network, cache, CPU, experts, graphs).warm_up()
    assert recorder.recorded == 2
    deadline = time.monotonic() + 10
    while not client.stats():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (stats,) = client.stats().values()
    assert stats['transport_bytes_total{direction="to_experts"}'] == 0
