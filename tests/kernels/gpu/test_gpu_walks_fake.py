"""Sections of `make gpu-check` at their real sizes, on a GPU without contents: shapes, types, places, memory.

What is compared there is 0, so comparisons fail here; that nothing else does is what is looked at.
"""

from __future__ import annotations

import re
from dataclasses import replace

import interpreted
import numpy as np
import pytest
import torch
from fake_cuda import GPU, FakeCuda
from trimaran import machine as machines
from trimaran_attn import pinned

MEMORY = 80 << 30
RAISED = re.compile(r"\w+(Error|Exception|Exit)\b")
pytestmark = pytest.mark.skipif(interpreted.ON_GPU, reason="`make gpu-check` runs them whole")


class Seen(pinned.SameMemory):
    """Pinning that a driver would do."""

    def __init__(self, *devices: torch.device) -> None:
        assert devices == (GPU,)


@pytest.fixture
def cuda(monkeypatch):
    return FakeCuda(monkeypatch, memory=MEMORY)


@pytest.fixture
def walk(load, cuda, monkeypatch):
    """Run a section's function; what was said."""

    def run(function: str, *args: object) -> list:
        said: list = []
        module, _, name = function.partition(":")
        with cuda, np.errstate(all="ignore"):
            bench = load("_gpu_bench").Bench(GPU, said.append)
            getattr(load(module), name)(bench, *args)
        return said

    return run


def failures(said: list) -> list[str]:
    return [message.what for message in said if type(message).__name__ == "Failed"]


@pytest.mark.parametrize(
    ("section", "kernels"),
    [
        ("ceilings", set()),
        ("one token", {"expand_kernel", "fixed_gemv_kernel"}),
        ("decode attention", {"split_kernel", "merge_kernel", "store_kernel"}),
        ("prefill attention", {"part_kernel"}),
        ("tokens", {"few_kernel", "sum_splits_kernel", "gemm_kernel", "expand_kernel"}),
        ("small", {"norm_kernel", "rotate_kernel", "router_kernel", "choose_kernel"}),
        ("hop", {"submit_kernel", "await_kernel", "collect_kernel"}),
        ("speed of hop", {"submit_kernel", "await_kernel", "collect_kernel"}),
    ],
)
def test_sections_at_their_real_sizes(section, kernels, load, walk, cuda, monkeypatch):
    monkeypatch.setattr(load("_gpu_shard"), "CudaPinning", Seen)
    monkeypatch.setattr(load("_gpu_hop"), "LAYERS", 5)
    functions = {known.name: known.function for known in load("_gpu_sections").SECTIONS}
    broken = [what for what in failures(walk(functions[section])) if RAISED.search(what)]
    assert not broken
    assert cuda.launched == kernels
    assert 0 < cuda.peak < 24 << 30
    assert cuda.normal.live == 0


@pytest.fixture
def memory(load, monkeypatch):
    """The section's module, on a machine with the GPU; the prompt has all the time."""
    module = load("_gpu_memory")
    here = machines.read_machine(with_gpus=False)
    gpu = machines.Gpu("fake", MEMORY, MEMORY, "9.0", "580", "GPU-0")
    for place in (module, load("trimaran_attn.loading")):
        monkeypatch.setattr(place, "read_machine", lambda *, with_gpus: replace(here, gpus=(gpu,)))
    monkeypatch.setattr(module, "SECONDS", 600.0)
    return module


def small(memory):
    """The slice with V3's widths, fewer heads and words: what it takes to write is a tenth."""
    return replace(memory.SLICE, n_layers=2, vocab_size=8192, dense_intermediate_size=2048, n_heads=16)


def test_a_slice_of_v3_keeps_to_its_plan(memory, walk, cuda):
    """Over its whole context, under the very cap that was planned, with recorded steps."""
    said = walk("_gpu_memory:check_memory", small(memory), 4096)
    assert not failures(said)
    figures = {message.case: message for message in said if type(message).__name__ == "Figure"}
    assert {case.partition(" of ")[0] for case in figures} >= {"prefill", "decode"}
    held, weights = (figures[f"V3 slice, {what}"] for what in ("held at most", "planned for weights"))
    assert weights.value < held.value <= held.floor
    assert {"draw_kernel", "part_kernel", "fixed_gemv_kernel", "merge_kernel"} <= cuda.launched
    assert cuda.stand_in.recorded == 2
    assert cuda.stand_in.replayed > 20


def test_a_plan_that_does_not_do_is_told(memory, walk, cuda, monkeypatch):
    """The first cap holds not even the weights; then all that the card has is given."""
    cap, shares = torch.cuda.set_per_process_memory_fraction, []

    def cap_once(share: float, device: torch.device) -> None:
        shares.append(share)
        cap(share if shares[1:] else (64 << 20) / MEMORY, device)

    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", cap_once)
    said = walk("_gpu_memory:check_memory", small(memory), 2048)
    assert any("what is planned does not do" in what for what in failures(said))
    assert [m for m in said if getattr(m, "case", "") == "V3 slice, held at most"]
