"""Layers on several devices: every tensor where it belongs, and the same bits as on one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from logical_devices import LogicalDevices, device_of
from torch import Tensor
from trimaran.kv_format import entry_bytes
from trimaran.synth import random_spec, write_random_model
from trimaran.wire import Generate, SamplingParams, TokenBatch
from trimaran_attn.kv_cache import PAGE_SIZE
from trimaran_attn.model.deepseek2 import ForwardOptions
from trimaran_attn.placement import Placement, Stage, turns
from trimaran_attn.request import Request
from trimaran_attn.runner import make_batch
from trimaran_attn.scheduler import Chunk, StepPlan

CPU, ONE, TWO = torch.device("cpu"), torch.device("cpu:0"), torch.device("cpu:1")
SPEC = random_spec("v3")
BuildLab = Callable[..., Any]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.gguf"
    return write_random_model(path, "v3", mix="Q4_K_M", seed=5, tokenizer=False)


@pytest.fixture
def devices() -> Iterator[LogicalDevices]:
    with LogicalDevices() as mode:
        yield mode


def two(border: int) -> Placement:
    return Placement((Stage(ONE, range(border)), Stage(TWO, range(border, SPEC.n_layers))))


def chunk(first_page: int, start: int, length: int) -> Chunk:
    ids = [(7 * i * i + first_page) % 250 for i in range(start + length)]
    pages = list(range(first_page, first_page + -(-(start + length) // PAGE_SIZE)))
    return Chunk(Request(str(first_page), ids, SamplingParams(), 9, pages=pages), start, length)


def logits(lab: Any) -> Tensor:
    """Of a prompt, then of streams and a prompt together."""
    rows = []
    history = (chunk(0, 0, 40), chunk(1, 0, 70))
    mixed = (chunk(0, 40, 1), chunk(1, 70, 1), chunk(3, 0, 30))
    for chunks in (history, mixed):
        batch = make_batch(StepPlan(chunks), lab.device)
        every_row = torch.arange(sum(part.length for part in chunks), device=lab.device)
        rows.append(lab.model.forward(replace(batch, sampled_rows=every_row), lab.cache).logits.cpu())
    return torch.cat(rows)


def test_the_mode_notices_what_a_gpu_would(devices: LogicalDevices) -> None:
    here, there = torch.ones(2, device=ONE), torch.ones(2, device=TWO)
    for other in (there, torch.ones(2)):
        with pytest.raises(AssertionError, match="mixes"):
            here + other
        with pytest.raises(AssertionError, match="mixes"):
            torch.cat([here, other])
    moved = here.to(TWO)
    assert (moved + there).device == TWO
    assert here.device == ONE
    assert (here * 2)[0].to(torch.float16).device == ONE
    assert device_of(here.cpu()) == CPU


@pytest.mark.parametrize("border", range(1, SPEC.n_layers))
@pytest.mark.parametrize("options", [ForwardOptions(), ForwardOptions(4)], ids=["whole", "parts"])
@pytest.mark.parametrize("form", ["naive", "absorbed"])
def test_a_layer_touches_its_device_only(
    border: int,
    options: ForwardOptions,
    form: str,
    path: Path,
    build_lab: BuildLab,
    devices: LogicalDevices,
) -> None:
    arguments: dict[str, Any] = {"linears": "dense", "native": False, "mla": form, "defer_experts": 1}
    lab = build_lab(path, **arguments, where=two(border), options=options)
    devices.touched.clear()
    spread = logits(lab)
    assert set(devices.touched) == {ONE, TWO}
    if options.micro_batches == 1:
        assert devices.touched.count(TWO) == 2 * 2, "each step: its angles, then its layers"
    alone = build_lab(path, **arguments, options=options)
    assert torch.equal(spread, logits(alone))


def test_the_cache_follows_its_layers(path: Path, build_lab: BuildLab, devices: LogicalDevices) -> None:
    lab = build_lab(path, kv="bf16", where=two(1))
    sizes: Counter[torch.device] = Counter()
    for layer in range(SPEC.n_layers):
        stored = lab.cache.layer_bytes(layer)
        sizes[device_of(stored)] += stored.nbytes
    layer_bytes = lab.cache.n_pages * PAGE_SIZE * entry_bytes(SPEC, "bf16")
    assert sizes == {ONE: layer_bytes, TWO: (SPEC.n_layers - 1) * layer_bytes}


def generate(lab: Any) -> dict[str, list[int]]:
    """Greedy answers to prompts with common beginnings, on so few pages that some are preempted."""
    engine = lab.engine(max_running=4, context_length=6 * PAGE_SIZE)
    pages = engine.scheduler.pages
    pages.allocate(pages.n_free - 8)
    common = [(11 * i) % 250 for i in range(PAGE_SIZE + 5)]
    answers: dict[str, list[int]] = {name: [] for name in "abcd"}
    for index, name in enumerate(answers):
        sampling = SamplingParams(temperature=0, max_tokens=80, ignore_eos=True)
        prompt = [*common, *range(index, index + 20)]
        assert (
            engine.submit(Generate(request_id=name, prompt_ids=prompt, sampling=sampling, stop_ids=[]))
            is None
        )
    while engine.has_work:
        for event in engine.step():
            assert isinstance(event, TokenBatch)
            answers[event.request_id] += event.ids
    assert engine.scheduler.counters.preemptions > 0
    assert engine.scheduler.counters.hit_tokens > 0
    return answers


def test_preemption_and_prefixes_with_the_kernels(path: Path, build_lab: BuildLab) -> None:
    arguments: dict[str, Any] = {"linears": "packed", "mla": "absorbed", "kv": "bf16", "exact_maps": False}
    assert generate(build_lab(path, **arguments, where=two(2))) == generate(build_lab(path, **arguments))


def test_what_follows_the_layers_is_on_the_last_device() -> None:
    placement = two(1)
    assert placement.device_of("model.embed_tokens") == ONE
    assert placement.device_of("model.layers.0.mlp.gate_proj") == ONE
    assert placement.device_of("model.layers.1.self_attn.o_proj") == TWO
    assert placement.device_of("model.norm") == placement.device_of("lm_head") == TWO
    assert str(placement) == f"cpu:0 (layers 0-0), cpu:1 (layers 1-{SPEC.n_layers - 1})"
    assert str(Placement.on(CPU, 3)) == "cpu"


@pytest.mark.parametrize(
    "stages", [[range(6)], [range(3), range(3, 6)], [range(2), range(2, 4), range(4, 6)]]
)
@pytest.mark.parametrize("n_parts", [1, 2, 3, 4, 6])
def test_turns_keep_every_order(stages: list[range], n_parts: int) -> None:
    order = list(turns(stages, n_parts))
    assert sorted(order) == [(layer, part) for layer in range(6) for part in range(n_parts)]
    for part in range(n_parts):
        assert [layer for layer, other in order if other == part] == list(range(6))
    for layer in range(6):
        assert [part for other, part in order if other == layer] == list(range(n_parts))


def test_groups_of_parts_keep_two_devices_busy() -> None:
    halves = [range(3), range(3, 6)]
    assert list(turns(halves, 2))[:4] == [(0, 0), (0, 1), (1, 0), (1, 1)], "one group: experts come first"
    order = list(turns(halves, 4))
    middle = order[6:18]
    for tick in (middle[i : i + 4] for i in range(0, 12, 4)):
        stages = [layer // 3 for layer, _ in tick]
        assert stages == [1, 1, 0, 0], "the first group is a device ahead of the second"
