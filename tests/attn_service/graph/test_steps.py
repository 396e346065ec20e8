"""Replayed decode steps against the same steps launched one by one."""

from __future__ import annotations

import random
from collections.abc import Iterator

import interpreted
import numpy as np
import pytest
import torch
from capture_guard import CaptureGuard, NotCapturableError
from replaying import DenseExperts, build_dense_experts
from torch import Tensor
from trimaran.wire import SamplingParams
from trimaran_attn.experts import SKIPPED
from trimaran_attn.kv_cache import PAGE_SIZE, LatentCache
from trimaran_attn.request import Request, State
from trimaran_attn.runner import Runner, make_batch
from trimaran_attn.scheduler import Chunk, StepPlan
from trimaran_kernels.gpu import gemm, gemv

CPU = torch.device("cpu")


@pytest.fixture
def rng() -> random.Random:
    return random.Random(5)


def request_of(n_tokens: int, pages: list[int], rng: random.Random) -> Request:
    """All but its last token computed, which was drawn."""
    ids = [rng.randrange(280) for _ in range(n_tokens)]
    return Request(
        f"r{pages[0]}",
        ids[:-1],
        SamplingParams(),
        max_tokens=100,
        pages=pages,
        output_ids=ids[-1:],
        state=State.RUNNING,
        n_computed=n_tokens - 1,
    )


def requests_of(lengths: list[int], rng: random.Random, n_pages: int = 20) -> list[Request]:
    free = list(range(n_pages))
    rng.shuffle(free)
    return [request_of(n, [free.pop() for _ in range(-(-n // PAGE_SIZE))], rng) for n in lengths]


def prefill(bench, cache: LatentCache, requests: list[Request]) -> None:
    chunks = [Chunk(request, 0, request.n_computed) for request in requests if request.n_computed]
    if chunks:
        bench.model.forward(make_batch(StepPlan(tuple(chunks)), CPU), cache)


def decode_plan(requests: list[Request]) -> StepPlan:
    return StepPlan(tuple(Chunk(request, request.n_computed, 1) for request in requests))


def go_on(requests: list[Request], logits: Tensor) -> None:
    for request, row in zip(requests, logits, strict=True):
        request.n_computed += 1
        request.output_ids.append(int(row.argmax()))


@pytest.mark.parametrize("kind", ["f32", "fp8"])
def test_steps_over_static_inputs_are_the_normal_ones(make_bench, rng, kind):
    """All sizes up to the largest, lengths on both sides of pages' borders, padding beside them."""
    bench = make_bench()
    lengths = [1, 2, PAGE_SIZE, PAGE_SIZE + 1, 3 * PAGE_SIZE - 1, 150]
    for count in (1, 2, 3, 5, 6):
        rng.shuffle(lengths)
        requests = requests_of(lengths[:count], rng)
        normal, static = bench.cache(kind), bench.cache(kind)
        graphs = bench.graphs(static)
        for cache in (normal, static):
            prefill(bench, cache, requests)
        for _ in range(3):  # as it is, recorded, replayed
            plan = decode_plan(requests)
            assert graphs.fits(plan)
            got = graphs.run(plan).logits.clone()
            expected = bench.model.forward(make_batch(plan, CPU), normal).logits
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
            go_on(requests, expected)
            for request in requests:
                if request.n_tokens > len(request.pages) * PAGE_SIZE:
                    used = {page for other in requests for page in other.pages}
                    request.pages += [next(page for page in range(20) if page not in used)]
    assert bench.recorder.replayed >= 5


def test_a_replay_is_the_recorded_step_to_the_bit(make_bench, rng):
    """Whatever the padding holds, and whoever sat there before."""
    bench = make_bench()
    requests = requests_of([70, 3, 130], rng)
    cache = bench.cache()
    prefill(bench, cache, requests)
    graphs, plan = bench.graphs(cache), decode_plan(requests)
    results = [graphs.run(plan).logits.clone() for _ in range(3)]
    others = bench.graphs(cache)
    others.run(decode_plan(requests_of([9, 8, 7, 6], rng)))
    results.append(others.run(plan).logits.clone())
    for result in results[1:]:
        assert torch.equal(result, results[0])


def test_padding_writes_to_no_page_of_a_request(make_bench, rng):
    bench = make_bench()
    cache = bench.cache()
    (request,) = requests_of([5], rng)
    before = cache.layer_bytes(1).clone()
    graphs = bench.graphs(cache)
    plan = decode_plan([request, *requests_of([4], random.Random(1)), *requests_of([9], random.Random(2))])
    graphs.run(plan)
    written = {int(page) for page in (cache.layer_bytes(1) != before).flatten(1).any(1).nonzero()}
    real = {chunk.request.pages[0] for chunk in plan.chunks}
    assert written <= real | {cache.n_pages - 1}


def test_rows_of_a_table_follow_their_requests(make_bench, rng):
    """A request that gives its pages up and gets others of the same number, in the same row."""
    bench = make_bench()
    requests = requests_of([100, 100], rng)
    first, second = requests
    cache = bench.cache()
    prefill(bench, cache, requests)
    graphs = bench.graphs(cache)
    graphs.run(decode_plan([first]))
    first.pages = list(second.pages)
    first.prompt_ids, first.output_ids = second.prompt_ids, second.output_ids
    got = graphs.run(decode_plan([first])).logits.clone()
    assert torch.equal(got, bench.graphs(cache).run(decode_plan([second])).logits)


@pytest.mark.parametrize("case", ["prompt", "scores", "crowd", "tracing", "nothing"])
def test_other_steps_are_not_replayed(make_bench, rng, case):
    bench = make_bench()
    graphs = bench.graphs(bench.cache())
    requests = requests_of([5] * (7 if case == "crowd" else 2), rng)
    plan = decode_plan(requests)
    if case == "prompt":
        plan = StepPlan((*plan.chunks[:1], Chunk(requests[1], 0, 5)))
    if case == "scores":
        params = SamplingParams(prompt_logprobs=0)
        asked = Request("s", [1, 2, 3], params, 9, pages=[1], n_computed=1)
        plan = StepPlan((Chunk(asked, 1, 1),))
    if case == "tracing":
        bench.tracer.start()
    if case == "nothing":
        plan = StepPlan()
    assert not graphs.fits(plan)


def test_a_refused_recording_leaves_steps_as_they_are(make_bench, rng):
    bench = make_bench()
    bench.recorder.refusal = RuntimeError("operation not permitted when stream is capturing\nmore words")
    requests = requests_of([5, 6], rng)
    cache = bench.cache()
    prefill(bench, cache, requests)
    graphs, plan = bench.graphs(cache), decode_plan(requests)
    runner = Runner(bench.model, cache, CPU, graphs=graphs)
    results = [runner.run(plan).logits for _ in range(7)]  # each size that holds them is tried once
    assert not graphs.fits(plan)
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-4, atol=1e-4)


def test_sizes_that_cannot_be_recorded_take_the_next_larger_one(make_bench, rng, caplog):
    """Of 6, 4, 2 and 1 rows; the largest falls back to launching, and each is one line in the log."""
    bench = make_bench()
    bench.recorder.refusal, bench.recorder.refused = RuntimeError("out of memory"), {0, 2}
    cache = bench.cache()
    graphs = bench.graphs(cache)
    with caplog.at_level("WARNING"):
        graphs.warm_up()
    assert (bench.recorder.recorded, len(caplog.records)) == (2, 2)
    assert sorted(graphs._buckets) == [1, 4]  # the others' inputs are given up
    requests = requests_of([5, 6, 7, 8, 9], rng)
    prefill(bench, cache, requests)
    assert not graphs.fits(decode_plan(requests))
    plan = decode_plan(requests[:2])
    assert graphs.fits(plan)
    before = bench.recorder.replayed
    got = graphs.run(plan).logits.clone()
    assert (bench.recorder.recorded, bench.recorder.replayed) == (2, before + 1)
    torch.testing.assert_close(
        got, bench.model.forward(make_batch(plan, CPU), cache).logits, rtol=1e-4, atol=1e-4
    )


def test_rows_of_padding_ask_no_expert(make_bench, rng):
    asked = []

    class Noting(DenseExperts):
        def submit(self, layer, x, ids, weights):
            asked.append(ids)
            return super().submit(layer, x, ids, weights)

    def build(site):
        experts = build_dense_experts(site)
        experts.__class__ = Noting
        return experts

    bench = make_bench(experts=build)
    bench.graphs(bench.cache()).run(decode_plan(requests_of([3, 4, 5], rng)))
    assert len(asked) == bench.spec.n_layers - bench.spec.n_dense_layers
    for ids in asked:
        assert (ids[:3] >= 0).all()
        assert (ids[3:] == SKIPPED).all()
        assert len(ids) == 4


def test_all_sizes_are_recorded_before_the_first_request(make_bench, rng):
    bench = make_bench()
    graphs = bench.graphs(bench.cache())
    graphs.warm_up()
    assert bench.recorder.recorded == 4  # 1, 2, 4, 6
    graphs.run(decode_plan(requests_of([7, 8, 9], rng)))
    assert bench.recorder.recorded == 4


@pytest.mark.parametrize(
    "bad",
    [
        lambda x: x.sum().item(),
        lambda x: x[x > 0],
        lambda x: x[[0, 1]],
        lambda x: x + torch.tensor([1.0, 2.0, 3.0]),
        lambda x: x.numpy(),
        lambda x: bool(x.any()),
        lambda x: (x > 0).nonzero(),
        lambda x: torch.where(x > 0),
        lambda x: x.cpu(),
    ],
)
def test_the_guard_finds(bad):
    with CaptureGuard(), pytest.raises(NotCapturableError):
        bad(torch.ones(3))


@pytest.mark.skipif(interpreted.ON_GPU, reason="kernels are compiled here: `make gpu-check`")
def test_the_gpus_kernels_in_a_replayed_step(make_bench, rng, monkeypatch):
    """Quantised matrices and paged attention in the interpreter."""
    monkeypatch.setattr(gemv, "rows_per_program", lambda _: 512)
    monkeypatch.setattr(gemm, "choose_tile", lambda _: gemm.Tile(rows=512, tokens=16, codes=128, warps=4))
    bench = make_bench("gpu")
    requests = requests_of([1, 1], rng)
    cache = bench.cache()
    with np.errstate(all="ignore"):
        got = bench.graphs(cache).run(decode_plan(requests)).logits.clone()
        expected = bench.model.forward(make_batch(decode_plan(requests), CPU), cache).logits
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
