"""Replayed steps of layers on two devices: a recording on each, and the same bits as on one."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import torch
from logical_devices import LogicalDevices, device_of
from torch import Tensor
from trimaran.synth import random_spec
from trimaran.wire import SamplingParams
from trimaran_attn.draws import Draw
from trimaran_attn.placement import Placement, Stage
from trimaran_attn.request import Request, State
from trimaran_attn.runner import Runner
from trimaran_attn.scheduler import Chunk, StepPlan
from trimaran_kernels.gpu.sampling_inputs import DrawInputs

ONE, TWO = torch.device("cpu:0"), torch.device("cpu:1")
N_LAYERS = random_spec("v3").n_layers


@pytest.fixture
def devices() -> Iterator[LogicalDevices]:
    with LogicalDevices() as mode:
        yield mode


def two(border: int) -> Placement:
    return Placement((Stage(ONE, range(border)), Stage(TWO, range(border, N_LAYERS))))


def plan_of(step: int, requests: list[Request]) -> StepPlan:
    """The next token of each; the second half is drawn where the logits are."""
    for request in requests:
        request.n_computed = step
    drawn = {request.request_id: Draw(0.0) for request in requests[len(requests) // 2 :]}
    return StepPlan(tuple(Chunk(request, step, 1) for request in requests), drawn)


def requests_of(count: int) -> list[Request]:
    rng = random.Random(3)
    return [
        Request(
            f"r{row}",
            [],
            SamplingParams(),
            max_tokens=99,
            output_ids=[rng.randrange(280) for _ in range(6)],
            pages=[row],
            state=State.RUNNING,
        )
        for row in range(count)
    ]


def greedy(logits: Tensor, wanted: DrawInputs, out: Tensor) -> Tensor:
    assert device_of(logits) == device_of(wanted.shares) == device_of(out)
    return out.copy_(torch.where(wanted.temperatures == 0, logits.argmax(-1), -2))


def run_steps(bench, count: int) -> list[tuple[Tensor, dict[str, int | None]]]:
    """Of requests that all begin with their first token: each step's logits and tokens."""
    cache = bench.cache()
    graphs = bench.graphs(cache, greedy)
    runner = Runner(bench.model, cache, bench.placement.first, graphs=graphs, drawer=greedy)
    outputs = []
    for step in range(5):
        requests = requests_of(count)
        for request in requests:
            del request.output_ids[step + 1 :]
        output = runner.run(plan_of(step, requests))
        outputs.append((output.logits.clone(), dict(output.tokens)))
    return outputs


@pytest.mark.parametrize("border", [1, 2])
@pytest.mark.parametrize("count", [1, 3])
def test_two_recordings_are_the_step(make_bench, devices: LogicalDevices, border: int, count: int) -> None:
    """As it is, recorded, replayed; what crosses is what comes out of the first device's layers."""
    alone = run_steps(make_bench(), count)
    bench = make_bench(where=two(border))
    devices.crossed = 0
    spread = run_steps(bench, count)
    assert (bench.recorder.recorded, bench.recorder.replayed) == (2, 2 * 4)
    assert devices.crossed == 5
    for (logits, tokens), (other_logits, other_tokens) in zip(alone, spread, strict=True):
        assert device_of(other_logits) == torch.device("cpu")
        assert torch.equal(logits, other_logits)
        assert len(logits) == count // 2
        assert tokens == other_tokens
        assert len(tokens) == count - count // 2


def test_a_size_that_fails_on_the_second_device_is_launched(make_bench, devices: LogicalDevices) -> None:
    bench = make_bench(where=two(2))
    bench.recorder.refusal, bench.recorder.refused = RuntimeError("out of memory"), {1}
    spread = run_steps(bench, 6)
    assert bench.recorder.replayed == 0
    for (logits, tokens), (other_logits, other_tokens) in zip(
        run_steps(make_bench(), 6), spread, strict=True
    ):
        torch.testing.assert_close(other_logits, logits, rtol=1e-4, atol=1e-4)
        assert tokens == other_tokens
