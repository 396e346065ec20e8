"""The sampling sections of `make gpu-check`, walked on the CPU: what they pass, and what they find."""

from __future__ import annotations

import interpreted
import pytest
import torch
from gpu_walk import failures
from trimaran_kernels.gpu.sampling_reference import draw_reference

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(interpreted.ON_GPU, reason="`make gpu-check` runs them whole")


@pytest.fixture
def walk(load, monkeypatch):
    """The sections' module, with the reference in place of the kernel; a bench, and what was said to it."""
    torch.manual_seed(1)
    module, said = load("_gpu_sampling"), []
    monkeypatch.setattr(module, "draw", by_reference)
    return module, load("_gpu_bench").Bench(CPU, said.append), said


def by_reference(logits, wanted, out):
    return out.copy_(torch.tensor(draw_reference(logits, wanted)))


def test_every_way_at_the_real_vocabulary(walk):
    module, bench, said = walk
    for name in module.WAYS:
        module.check_way(bench, name, "peaked", torch.randn(2, module.VOCAB) * 3)
    assert not failures(said)
    assert len(said) == len(module.WAYS)


@pytest.mark.parametrize("way", ["greedy", "temperature 1", "top-k 20"])
def test_wrong_tokens_are_found(walk, monkeypatch, way):
    module, bench, said = walk

    def wrong(logits, wanted, out):
        return by_reference(logits, wanted, out).sub_(40).abs_()

    monkeypatch.setattr(module, "draw", wrong)
    module.check_way(bench, way, "peaked", torch.randn(2, 5000) * 3)
    assert len(failures(said)) == 1


def test_a_row_without_a_token_is_found(walk, monkeypatch):
    module, bench, said = walk
    monkeypatch.setattr(module, "draw", lambda logits, wanted, out: out.fill_(-1))
    module.check_way(bench, "temperature 1", "flat", torch.randn(2, 5000))
    module._check_rows_apart(bench, torch.randn(3, 500))
    assert len(failures(said)) == 2


def test_nearly_equal_tokens_may_stand_in_for_each_other(walk):
    module, _, _ = walk
    logits = torch.tensor([3.0, 1.0, 2.0, 2.0, 1.5])
    assert module._places_apart(logits, 2, 2, by_size=True) == 0
    assert module._places_apart(logits, 2, 3, by_size=True) == 1
    assert module._places_apart(logits, 0, 1, by_size=True) == 4
    assert module._places_apart(logits, 0, 4, by_size=False) == 4


def test_draws_are_timed_against_their_logits(load, walk, monkeypatch):
    module, bench, said = walk
    bench_module = load("_gpu_bench")
    monkeypatch.setattr(bench_module, "seconds_of", lambda call: call() is None or 1e-3)
    monkeypatch.setattr(module, "VOCAB", 1000)
    bench.ceilings = bench_module.Ceilings(copy=1e6, product=1e9)
    module.measure_sampling(bench)
    assert not failures(said)
    assert [message.floor for message in said] == [4000.0, 32000.0] * 4  # µs at 1 MB/s
