"""Experts split between two places give what one place gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from trimaran.errors import GpuMemoryError, PeerError
from trimaran_attn.experts import LocalExperts, build_local_experts
from trimaran_attn.gpu_experts.resident import ExpertFile, ResidentLayer
from trimaran_attn.gpu_experts.split import SplitExperts
from trimaran_kernels.gpu.grouped_reference import grouped_reference

CPU = torch.device("cpu")
LAYER = 2


class Spy:
    """Experts in this process that remember what they were asked."""

    def __init__(self, inner: LocalExperts) -> None:
        self._inner = inner
        self.ids: list[Tensor] = []
        self.waited = 0
        self.failure: Exception | None = None

    def submit(self, layer: int, x: Tensor, ids: Tensor, weights: Tensor) -> Any:
        self.ids.append(ids)
        return self._inner.submit(layer, x, ids, weights)

    def wait(self, ticket: Any) -> Tensor:
        self.waited += 1
        if self.failure is not None:
            raise self.failure
        return self._inner.wait(ticket)


@pytest.fixture
def spy(site_of) -> Spy:
    return Spy(build_local_experts(site_of(LAYER)))


@pytest.fixture
def make_layer(site_of):
    return lambda experts: ResidentLayer(ExpertFile.of(site_of(LAYER)), experts, CPU, grouped_reference)


@pytest.mark.parametrize("residents", [(0,), (5, 2, 11), tuple(range(16))])
@pytest.mark.parametrize("n", [0, 1, 13])
def test_the_sum_is_the_whole(spy, make_layer, make_batch, residents, n):
    batch = make_batch(n)
    whole = spy.wait(spy.submit(LAYER, *batch))
    split = SplitExperts(spy, make_layer(residents))
    y = split.wait(split.submit(LAYER, *batch))
    torch.testing.assert_close(y, whole, rtol=1e-5, atol=1e-5 * float(whole.abs().max()) if n else 0.0)


def test_each_choice_is_computed_in_one_place(spy, make_layer, make_batch):
    x, ids, weights = make_batch(9)
    ids[3, 1] = -1
    layer = make_layer((4, 7))
    split = SplitExperts(spy, layer)
    split.wait(split.submit(LAYER, x, ids, weights))
    here = (ids == 4) | (ids == 7)
    assert here.any()
    assert torch.equal(spy.ids[0], torch.where(here, -1, ids))
    expected = [int((ids == expert).sum()) if expert in (4, 7) else 0 for expert in range(16)]
    assert layer.served() == expected


def test_an_expert_moves_in_where_another_was(spy, make_layer, make_batch):
    layer, batch = make_layer((4, 7)), make_batch(9)
    split = SplitExperts(spy, layer)
    before = split.wait(split.submit(LAYER, *batch))
    layer.exchange(0, 1)
    after = split.wait(split.submit(LAYER, *batch))
    assert layer.experts == [1, 7]
    assert torch.equal(layer.here(batch[1]), (batch[1] == 1) | (batch[1] == 7))
    torch.testing.assert_close(before, after, rtol=1e-5, atol=1e-5 * float(before.abs().max()))


def test_a_failure_here_gives_the_other_its_slot_back(spy, site_of, make_batch):
    def fail(*_: Any) -> Tensor:
        raise GpuMemoryError("no memory")

    layer = ResidentLayer(ExpertFile.of(site_of(LAYER)), (1,), CPU, fail)
    split = SplitExperts(spy, layer)
    for spy.failure in (None, PeerError("gone")):
        with pytest.raises(GpuMemoryError):
            split.submit(LAYER, *make_batch(2))
    assert spy.waited == 2


def test_a_failure_there_is_told(spy, make_layer, make_batch):
    split = SplitExperts(spy, make_layer((1,)))
    spy.failure = PeerError("gone")
    with pytest.raises(PeerError):
        split.wait(split.submit(LAYER, *make_batch(2)))
