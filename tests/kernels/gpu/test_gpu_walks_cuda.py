"""Sections of `make gpu-check` that speak to CUDA itself, walked with a stand-in that knows CUDA's rules."""

from __future__ import annotations

from types import SimpleNamespace
from unittest.mock import create_autospec

import interpreted
import pytest
import torch
from cuda_stand_in import StandIn
from gpu_walk import cases, failures
from trimaran_kernels.gpu.grouped_reference import grouped_reference

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(interpreted.ON_GPU, reason="`make gpu-check` runs them whole")


@pytest.fixture
def cuda(monkeypatch):
    return StandIn(monkeypatch)


def test_the_stand_in_keeps_the_rules(cuda):
    first, second = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    first.record()
    second.record()
    with pytest.raises(AssertionError, match="nobody has waited"):
        first.elapsed_time(second)
    second.synchronize()
    assert first.elapsed_time(second) > 0
    with pytest.raises(AssertionError, match="without enable_timing"):
        first.elapsed_time(torch.cuda.Event())
    with pytest.raises(TypeError):
        torch.cuda.Event(timing=True)
    with (
        pytest.raises(AssertionError, match="cannot be waited for"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        torch.cuda.synchronize()


def test_times_are_those_of_a_recorded_graph(load, cuda):
    calls = []
    assert load("_gpu_bench").seconds_of(lambda: calls.append(torch.ones(3))) > 0
    assert cuda.recorded == 1
    assert cuda.replayed == 10
    assert len(calls) > 6  # warmed up, estimated, recorded


def test_ceilings_and_the_bus(load, walk, cuda, monkeypatch):
    bench, said = walk
    bench_module, experts = load("_gpu_bench"), load("_gpu_experts")
    monkeypatch.setattr(bench_module, "COPIED_VALUES", 1000)
    monkeypatch.setattr(bench_module, "PRODUCT_SIZE", 32)
    load("_gpu_speed").measure_ceilings(bench)
    monkeypatch.setattr(experts, "BUS_BYTES", 1000)
    experts._time_bus(bench)
    assert cases(said) == ["copy", "bf16 product", "host to GPU, pinned"]
    assert all(message.value > 0 for message in said)


def test_hops_are_measured_launched_and_replayed(load, walk, cuda, monkeypatch):
    bench, said = walk
    hop = load("_gpu_hop")
    monkeypatch.setattr(hop, "V3", hop.SMALL)
    monkeypatch.setattr(hop, "LAYERS", 2)
    monkeypatch.setattr(hop, "STEPS", 2)
    monkeypatch.setattr(hop, "BATCHES", (1, 3))
    hop.measure_hop(bench)
    assert not failures(said)
    assert cases(said) == [
        f"hop from device, {n} tokens, {how}" for n in (1, 3) for how in ("launched one by one", "replayed")
    ]
    assert (cuda.recorded, cuda.replayed) == (2, 4)


@pytest.fixture
def experts(load, monkeypatch):
    """The module, with the reference in place of the kernels: the way there is walked, not the arithmetic."""
    module = load("_gpu_experts")

    def by_reference(x, ids, weights, slots, stack, out=None):
        y = grouped_reference(x, ids, weights, slots, stack)
        return y if out is None else out + y

    monkeypatch.setattr(module, "grouped_experts", by_reference)
    return module


def test_experts_are_streamed(experts, walk, cuda):
    bench, said = walk
    experts._check_stream(bench)
    assert not failures(said)
    assert cases(said) == ["check experts streamed"]


def test_a_streamed_layer_is_timed(experts, walk, cuda, monkeypatch):
    bench, said = walk
    for name, value in {"HIDDEN": 256, "WIDE": 256, "TOP_K": 2, "STREAMED_TOKENS": 2}.items():
        monkeypatch.setattr(experts, name, value)
    experts._time_stream(bench)
    assert cases(said) == ["streamed layer, 16 experts of 64 tokens", "streamed layer"]


def test_the_peak_of_memory_is_that_of_the_section(load, walk, cuda, monkeypatch):
    bench, _ = walk
    memory = load("_gpu_memory")
    for name, value in {"empty_cache": None, "reset_peak_memory_stats": None}.items():
        monkeypatch.setattr(torch.cuda, name, create_autospec(getattr(torch.cuda, name), return_value=value))
    reserved = create_autospec(torch.cuda.memory_reserved, return_value=1000)
    most = create_autospec(torch.cuda.max_memory_reserved, return_value=5000)
    fraction = create_autospec(torch.cuda.set_per_process_memory_fraction)
    monkeypatch.setattr(torch.cuda, "memory_reserved", reserved)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", most)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", fraction)
    monkeypatch.setattr(memory, "_use", lambda *_: None)
    assert memory._peak(bench, SimpleNamespace(), 64) == 4000
    fraction.assert_called_once_with(1.0, CPU)


def test_steps_recorded_by_cuda_equal_launched_ones(load, walk, cuda, monkeypatch):
    """With the recorder of a GPU: only kernels are replayed here, so nothing is compared."""
    bench, said = walk
    graphs = load("_gpu_graphs")
    for name, value in {"CONTEXT": 128, "MAX_RUNNING": 5, "REPEATS": 2}.items():
        monkeypatch.setattr(graphs, name, value)
    monkeypatch.setattr(graphs, "_check_replay", lambda _bench, model, plan: [model.replayed.run(plan)] * 3)
    spec = load("trimaran.synth").random_spec("v3")
    graphs.measure_graphs(bench, graphs.replace(spec, n_layers=2))
    assert not [what for what in failures(said) if "idle" not in what]
    assert cuda.recorded >= 1
