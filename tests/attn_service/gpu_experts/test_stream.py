"""Streamed experts give what the inner ones give, whenever the copies happen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from trimaran.errors import GpuMemoryError
from trimaran_attn.experts import build_local_experts
from trimaran_attn.gpu_experts.resident import ExpertFile
from trimaran_attn.gpu_experts.stream import RateMeter, StreamedExperts, StreamPolicy
from trimaran_attn.gpu_experts.stream_cost import LEAST_TOKENS, StreamRates
from trimaran_attn.gpu_experts.streamer import Streamer
from trimaran_kernels.gpu.grouped_reference import grouped_reference

CPU = torch.device("cpu")
LAYER = 2


class LateCopier:
    """Copies as late as a device may: when somebody waits. What was overwritten too early shows."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self._waiting: dict[int, Callable[[], None]] = {}
        self._marks = 0

    def host_buffer(self, nbytes: int) -> Tensor:
        return torch.zeros(nbytes, dtype=torch.uint8)

    def copy(self, source: Tensor, target: Tensor, after: Any) -> int:
        self.log.append("copy")
        mark = self.mark()

        def work() -> None:
            self._reach(after)
            target.copy_(source)

        self._waiting[mark] = work
        return mark

    def mark(self) -> int:
        self._marks += 1
        return self._marks

    def hold(self, mark: int) -> None:
        self.log.append("hold")
        self._reach(mark)

    def settle(self, mark: int | None) -> None:
        if mark is not None:
            self.log.append("settle")
            self._reach(mark)

    def _reach(self, mark: int | None) -> None:
        self._waiting.pop(mark or 0, lambda: None)()


class Asked:
    """The other experts, and what they were asked."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.ids: list[Tensor] = []
        self.waited = 0

    def submit(self, layer: int, x: Tensor, ids: Tensor, weights: Tensor) -> Any:
        self.ids.append(ids)
        return self._inner.submit(layer, x, ids, weights)

    def wait(self, ticket: Any) -> Tensor:
        self.waited += 1
        return self._inner.wait(ticket)


@pytest.fixture
def asked(site_of) -> Asked:
    return Asked(build_local_experts(site_of(LAYER)))


@pytest.fixture
def file(site_of) -> ExpertFile:
    return ExpertFile.of(site_of(LAYER))


@pytest.fixture
def make_streamer(file):
    opened = []

    def make(copier=None, compute=grouped_reference, per_buffer=3) -> Streamer:
        streamer = Streamer(
            file.cost.nbytes,
            16,
            device=CPU,
            copier=copier or LateCopier(),
            compute=compute,
            per_buffer=per_buffer,
        )
        opened.append(streamer)
        return streamer

    yield make
    for streamer in opened:
        streamer.close()


def policy(rates: StreamRates, most: int = 4096) -> StreamPolicy:
    return StreamPolicy(4, most, lambda *_: rates)


QUICK_GPU = StreamRates(copy=1e12, gpu=1e15, cpu_read=1e9, cpu=1e9)
EVEN = StreamRates(copy=1e9, gpu=1e15, cpu_read=1e9, cpu=1e20)
SLOW_GPU = StreamRates(copy=1e6, gpu=1e15, cpu_read=1e12, cpu=1e15)


@pytest.mark.parametrize("experts", [[5], [3, 1, 15], [7, 2, 9, 11, 0], list(range(16))])
def test_streamed_experts_are_the_formula(make_streamer, file, make_batch, experts):
    x, ids, weights = make_batch(20)
    copier = LateCopier()
    y = make_streamer(copier).run(file, experts, x, ids, weights)
    stack = file.stack(len(experts), CPU)
    slots = torch.full((16,), -1, dtype=torch.int32)
    for slot, expert in enumerate(experts):
        stack.put(slot, file.matrices(expert))
        slots[expert] = slot
    expected = grouped_reference(x, ids, weights, slots, stack)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    groups = -(-len(experts) // 3)
    assert copier.log.count("copy") == groups
    assert copier.log.count("settle") == max(0, groups - 2)  # a buffer's third use waits for its first copy


def test_a_host_buffer_is_not_written_before_its_copy_is_done(make_streamer, file, make_batch):
    copier = LateCopier()
    copier.settle = lambda _mark: None  # type: ignore[method-assign]
    copier.hold = lambda _mark: None  # type: ignore[method-assign] the device reads what is not there yet
    batch = make_batch(20)
    broken = make_streamer(copier).run(file, list(range(16)), *batch)
    whole = make_streamer().run(file, list(range(16)), *batch)
    assert not torch.allclose(broken, whole)  # so the copier of these tests would notice


@pytest.mark.parametrize("rates", [QUICK_GPU, EVEN])
def test_the_sum_is_the_whole(asked, file, make_streamer, make_batch, rates):
    batch = make_batch(LEAST_TOKENS + 3)
    whole = asked.wait(asked.submit(LAYER, *batch))
    streamed = StreamedExperts(asked, file, make_streamer(), policy(rates))
    y = streamed.wait(streamed.submit(LAYER, *batch))
    torch.testing.assert_close(y, whole, rtol=1e-5, atol=1e-5 * float(whole.abs().max()))
    skipped = (asked.ids[-1] == -1).float().mean()
    assert skipped == 1 if rates is QUICK_GPU else 0 < skipped < 1


@pytest.mark.parametrize(("n", "rates"), [(LEAST_TOKENS - 1, QUICK_GPU), (LEAST_TOKENS, SLOW_GPU)])
def test_what_does_not_pay_goes_the_old_way(asked, file, make_streamer, make_batch, n, rates):
    copier, batch = LateCopier(), make_batch(n)
    streamed = StreamedExperts(asked, file, make_streamer(copier), policy(rates))
    y = streamed.wait(streamed.submit(LAYER, *batch))
    assert torch.equal(y, asked.wait(asked.submit(LAYER, *batch)))
    assert torch.equal(asked.ids[0], batch[1])
    assert copier.log == []


def test_rates_are_measured_once_and_set_the_threshold(asked, file, make_streamer, make_batch):
    calls = []

    def measure(*_: Any) -> StreamRates:
        calls.append(1)
        return SLOW_GPU

    rule = StreamPolicy(4, 4096, measure)
    for site_streams in range(2):
        streamed = StreamedExperts(asked, file, make_streamer(), rule)
        streamed.wait(streamed.submit(LAYER, *make_batch(LEAST_TOKENS, site_streams)))
    assert len(calls) == 1
    assert rule.threshold > 4096


def test_a_failure_here_gives_the_other_its_slot_back(asked, file, make_streamer, make_batch):
    def fail(*_: Any) -> Tensor:
        raise GpuMemoryError("no memory")

    streamed = StreamedExperts(asked, file, make_streamer(compute=fail), policy(QUICK_GPU))
    with pytest.raises(GpuMemoryError):
        streamed.submit(LAYER, *make_batch(LEAST_TOKENS))
    assert asked.waited == 1


def test_rates_follow_the_clock(asked, file, make_streamer, make_batch):
    """Every work takes one second by this clock."""
    ticks = iter(range(100))
    meter = RateMeter(make_streamer(), 4, lambda: None, lambda: float(next(ticks)))
    x = make_batch(300)[0]
    rates = meter(asked, file, x)
    cost = file.cost
    assert rates.copy == 16 * cost.nbytes
    assert rates.gpu == 300 * cost.weights
    assert rates.cpu_read == 16 * cost.nbytes  # 8 tokens × 4 choices are all 16 experts
    assert rates.cpu == LEAST_TOKENS * 4 * cost.weights
