from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec.structs import replace as with_options
from trimaran.config import AttnConfig, Config
from trimaran.errors import ConfigError, PlanError
from trimaran.gguf import GGUFFile
from trimaran.machine import Gpu, read_machine
from trimaran.plan import GpuShare, Plan, make_plan
from trimaran.spec import read_spec
from trimaran.synth import random_spec, write_random_model
from trimaran_attn.cache_plan import GPU_SHARE, CachePlan, plan_cache
from trimaran_attn.kv_cache import page_bytes

SPEC = random_spec("v3")
PAGE = page_bytes(SPEC, "bf16")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> GGUFFile:
    path = tmp_path_factory.mktemp("model") / "model.gguf"
    return GGUFFile.open(write_random_model(path, "v3", tokenizer=False))


def size(file: GGUFFile, spare_pages: int | None = None, **options: object) -> CachePlan:
    config = with_options(AttnConfig(device="cpu"), **options)
    spec = read_spec(file)
    machine = read_machine(with_gpus=False)
    plan: Plan = make_plan(spec, file.tensors, machine, Config(attn=config))
    if spare_pages is not None:
        plan = replace(plan, ram=replace(plan.ram, available=plan.ram.needed + 4 * spare_pages * PAGE))
    return plan_cache(spec, config, "bf16", plan)


def test_auto_takes_a_context_and_a_share_of_the_rest(file: GGUFFile) -> None:
    assert size(file, spare_pages=0) == CachePlan(2048 // 64, 2048)
    assert size(file, spare_pages=10) == CachePlan(2048 // 64 + 10, 2048)
    assert size(file, spare_pages=10**6, max_running=3) == CachePlan(3 * 2048 // 64, 2048)


def test_a_given_memory_bounds_the_context(file: GGUFFile) -> None:
    assert size(file, kv_memory=str(PAGE * 5)) == CachePlan(5, 320)
    assert size(file, kv_memory=str(PAGE * 5 + 1), context_length=320) == CachePlan(5, 320)


def test_of_several_gpus_the_one_with_the_least_room_decides(file: GGUFFile) -> None:
    """A page is on each of them, with the latents of its own layers."""
    config, spec = AttnConfig(device="cuda:0+cuda:1", max_running=100), read_spec(file)
    card = Gpu("card", 80 << 30, 80 << 30, "8.9", "570")
    machine = replace(read_machine(with_gpus=False), gpus=(card, card))
    plan = make_plan(spec, file.tensors, machine, Config(attn=config))

    def with_room(share: GpuShare, pages: int) -> GpuShare:
        spare = math.ceil(pages * page_bytes(spec, "bf16", len(share.layers)) / GPU_SHARE)
        return replace(share, budget=replace(share.budget, available=share.budget.needed + spare + 1))

    first, last = plan.gpus
    for rooms in ((10, 25), (25, 10)):
        gpus = with_room(first, rooms[0]), with_room(last, rooms[1])
        assert plan_cache(spec, config, "bf16", replace(plan, gpus=gpus)) == CachePlan(2048 // 64 + 10, 2048)


def test_what_cannot_be_is_refused_with_the_numbers(file: GGUFFile) -> None:
    with pytest.raises(ConfigError, match=r"context_length is 4096, the model was made for 2048"):
        size(file, context_length=4096)
    with pytest.raises(PlanError, match=r"attn\.kv_memory \(256KiB\).*1024 tokens need"):
        size(file, kv_memory="256KiB", context_length=1024)
    with pytest.raises(PlanError, match="64 tokens need"):
        size(file, kv_memory="100")


def test_the_page_size_is_the_plans(file: GGUFFile, tmp_path: Path) -> None:
    from trimaran.plan import PAGE_TOKENS
    from trimaran_attn.kv_cache import PAGE_SIZE

    assert PAGE_TOKENS == PAGE_SIZE
