"""Sections of `make gpu-check` that need a GPU, walked on the CPU with small models."""

from __future__ import annotations

import importlib
import itertools
from dataclasses import replace

import interpreted
import pytest
import torch
from gpu_walk import cases, failures
from replaying import CallingRecorder
from trimaran.synth import random_spec

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(interpreted.ON_GPU, reason="`make gpu-check` runs them whole")


def test_a_slice_is_planned_loaded_and_filled(load, walk):
    bench, said = walk
    load("_gpu_memory").check_memory(bench, random_spec("v3"), context=320)
    assert not failures(said)
    assert cases(said) == [
        "prefill of 3 V3 layers, 288 of 320 tokens",
        "decode of 3 V3 layers behind 288 of 320 tokens",
    ]


def test_a_prompt_that_takes_too_long_is_told_as_far_as_it_came(load, walk, monkeypatch):
    bench, said = walk
    memory = load("_gpu_memory")
    monkeypatch.setattr(memory, "SECONDS", 0.0)
    memory.check_memory(bench, replace(random_spec("v3"), context_length=4096), context=4096)
    (case,) = cases(said)
    assert case == "prefill of 3 V3 layers, 2048 of 4096 tokens"
    assert any("the rest of the prompt" in str(message) for message in said)


def test_more_memory_than_planned_fails(load, walk):
    bench, said = walk
    memory, plan = load("_gpu_memory"), importlib.import_module("trimaran.plan")
    budget = plan.Budget(needed=plan.GPU_RESERVE + 1000, available=24 << 30)
    planned = plan_of_one_gpu(plan, budget)
    memory._tell(bench, planned, 1000)
    assert not failures(said)
    memory._tell(bench, planned, 1001)
    assert len(failures(said)) == 1


def plan_of_one_gpu(plan, budget):
    """A plan of one GPU that says what a test wants."""
    share = plan.GpuShare(0, "a GPU", 0, 2, 600, 300, 100, 8, 0, budget)
    return plan.Plan(
        model="m",
        device="cuda:0",
        items=(),
        skipped=0,
        kv_per_token=1,
        context=64,
        wanted_context=64,
        kv_bytes=300,
        workspace=100,
        gpu=budget,
        gpus=(share,),
        ram=plan.Budget(0, 1),
        services_in_ram=1,
        re_encoded=(),
        speed=plan.Speed(0, 0, None),
        experts=0,
    )


def test_recorded_steps_equal_launched_ones(load, walk, monkeypatch):
    bench, said = walk
    graphs = load("_gpu_graphs")
    monkeypatch.setattr(graphs, "CONTEXT", 128)
    monkeypatch.setattr(graphs, "MAX_RUNNING", 5)
    monkeypatch.setattr(graphs, "REPEATS", 2)
    recorder = CallingRecorder()
    spec = random_spec("v3")
    graphs.measure_graphs(bench, replace(spec, n_layers=3), record=lambda _: recorder)
    assert not failures(said)
    assert recorder.recorded == 3
    assert sum("replayed" in case for case in cases(said)) == 6


def test_whole_models_are_compared(load, walk):
    bench, said = walk
    load("_gpu_model").check_models(bench)
    assert not failures(said)
    assert [case.removeprefix("check model ") for case in cases(said)] == [
        f"{form} {kind}" for form in ("naive", "absorbed") for kind in ("bf16", "fp8")
    ]


def test_small_kernels_and_resident_experts_are_timed(load, walk, monkeypatch):
    bench, said = walk
    bench_module, small, experts = (load(f"_gpu_{name}") for name in ("bench", "small", "experts"))
    monkeypatch.setattr(bench_module, "seconds_of", lambda call: call() is None or 1e-3)
    bench.ceilings = bench_module.Ceilings(copy=1e6, product=1e9)
    monkeypatch.setattr(small, "HIDDEN", 256)
    small.measure_small(bench)
    for name, value in {"HIDDEN": 64, "WIDE": 32, "EXPERTS": 8, "TOP_K": 2}.items():
        monkeypatch.setattr(experts, name, value)
    stack = experts._random_stack(experts._SMALL, 2, 64, 32, CPU)
    experts._time(bench, "grouped", itertools.cycle([stack]), 1, torch.tensor([[1, 0]], dtype=torch.int32))
    assert not failures(said)
    assert cases(said) == [
        "add and norm, 1 token",
        "rotate queries, 1 token",
        "gate, 1 token",
        "grouped",
    ]
