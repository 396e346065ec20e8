from __future__ import annotations

from dataclasses import replace
from functools import partial
from math import prod
from pathlib import Path

import pytest
from trimaran.config_loader import load_config
from trimaran.errors import PlanError
from trimaran.gguf import GGMLType, GGUFFile, TensorInfo
from trimaran.gguf.mix import mix_named
from trimaran.machine import Gpu, Machine, Memory
from trimaran.model_tensors import global_shapes, layer_shapes
from trimaran.plan import Bandwidth, Plan, check_plan, make_plan
from trimaran.spec import ModelSpec, read_spec
from trimaran.synth import REAL_SPECS, write_random_model

GIB = 1 << 30

V3 = REAL_SPECS["DeepSeek-V3"]


def tensors_of(spec: ModelSpec) -> dict[str, TensorInfo]:
    shapes = global_shapes(spec)
    for layer in range(spec.n_layers):
        shapes |= layer_shapes(spec, layer, "kv_b", biased_gate=True)
    shapes["blk.61.nextn.eh_proj.weight"] = (7168, 14336)
    return {name: tensor(name, shape) for name, shape in shapes.items()}


def tensor(name: str, shape: tuple[int, ...]) -> TensorInfo:
    kind = GGMLType.F32 if len(shape) == 1 or "ffn_gate_inp" in name else GGMLType.Q4_K
    return TensorInfo(name, kind, shape, 0, 0, prod(shape[:-1]) * kind.row_bytes(shape[-1]))


def machine(ram: int, *gpus: int) -> Machine:
    memory = Memory(ram, ram, ram, 0, 0, "madvise")
    cards = tuple(Gpu("card", size, size, "8.9", "570") for size in gpus)
    return Machine("cpu", ("avx2",), (0, 1), None, memory, (), (GIB, GIB), cards)


def plan_v3(there: Machine, bandwidth: Bandwidth | None = None, **options: object) -> Plan:
    overrides = {path.replace("__", "."): value for path, value in options.items()}
    return make_plan(V3, tensors_of(V3), there, load_config(None, overrides, {}), bandwidth)


def part(plan: Plan, name: str) -> tuple[str, int]:
    item = next(item for item in plan.items if item.part == name)
    return item.place, item.nbytes


def test_deepseek_v3_on_a_gpu() -> None:
    plan = plan_v3(machine(512 * GIB, 80 * GIB), attn__context_length=32768)
    assert plan.problems() == []
    # 58 layers × 256 experts × 3 matrices of 7168 × 2048 at 4.5 bits
    assert part(plan, "routed experts") == ("RAM", 58 * 256 * 3 * 7168 * 2048 * 144 // 256)
    assert part(plan, "embeddings") == ("RAM", 129280 * 7168 * 144 // 256)
    assert part(plan, "head") == ("GPU", 129280 * 7168 * 148 // 256 + 4 * 7168)
    assert part(plan, "latent maps") == ("GPU", 2 * 61 * 512 * 128 * 256)
    assert part(plan, "router") == ("GPU", 4 * 58 * 256 * (7168 + 1))
    assert plan.kv_per_token == 61 * 576 * 2
    assert plan.kv_bytes == 32768 * 61 * 576 * 2
    assert plan.skipped == 7168 * 14336 * 144 // 256
    assert plan.gpu is not None
    assert 12 * GIB < plan.gpu.needed < 20 * GIB
    assert plan.re_encoded == ()


def q4_k_m(spec: ModelSpec) -> dict[str, TensorInfo]:
    """The directory of a V3 as people publish it."""
    choose = partial(mix_named("Q4_K_M").choose, n_layers=spec.n_layers)
    tensors = {}
    for name, info in tensors_of(spec).items():
        kind = choose(name, info.shape)
        nbytes = prod(info.shape[:-1]) * kind.row_bytes(info.shape[-1])
        tensors[name] = replace(info, type=kind, nbytes=nbytes)
    return tensors


@pytest.mark.parametrize(("kind", "entry"), [("fp8", 656), ("bf16", 1152)])
def test_v3_with_128k_tokens_fits_24_gib(kind: str, entry: int) -> None:
    options = {
        "attn.device": "cuda:0",
        "attn.gpu_memory": "24GiB",
        "attn.context_length": 131072,
        "attn.kv_dtype": kind,
    }
    plan = make_plan(V3, q4_k_m(V3), machine(512 * GIB, 80 * GIB), load_config(None, options, {}))
    assert plan.problems() == []
    assert plan.kv_bytes == 131072 * 61 * entry
    assert plan.gpu is not None
    assert plan.gpu.available == 24 * GIB
    assert 16 * GIB < plan.gpu.needed < 24 * GIB


def test_types_without_a_gpu_kernel_are_named() -> None:
    tensors = tensors_of(V3)
    output = tensors["output.weight"]
    tensors["output.weight"] = replace(output, type=GGMLType.Q3_K)
    config = load_config(None, {}, {})
    assert make_plan(V3, tensors, machine(512 * GIB, 80 * GIB), config).re_encoded == ("Q3_K",)
    assert make_plan(V3, tensors, machine(512 * GIB), config).re_encoded == ()


def test_every_byte_of_the_file_is_counted_once() -> None:
    plan = plan_v3(machine(512 * GIB, 80 * GIB))
    total = sum(info.nbytes for info in tensors_of(V3).values())
    assert sum(item.file_bytes for item in plan.items) + plan.skipped == total


def test_decode_is_bound_by_the_bytes_read() -> None:
    plan = plan_v3(machine(512 * GIB, 80 * GIB), Bandwidth(ram=440e9, gpu=1000e9))
    experts = 58 * 8 * 3 * 7168 * 2048 * 144 // 256
    assert plan.speed.ram_bytes == experts
    assert plan.speed.tokens_per_second == pytest.approx(
        1 / (experts / 440e9 + plan.speed.gpu_bytes / 1000e9)
    )
    assert plan_v3(machine(512 * GIB, 80 * GIB), Bandwidth(ram=440e9)).speed.tokens_per_second is None


def test_too_small_a_gpu_is_refused_with_numbers() -> None:
    plan = plan_v3(machine(512 * GIB, 11 * GIB), attn__context_length=4096)
    with pytest.raises(PlanError, match=r"GPU: .* are needed, 11.0 GiB are there, .* too little") as caught:
        check_plan(plan)
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)


def test_the_context_that_fits_is_named() -> None:
    big = plan_v3(machine(512 * GIB, 20 * GIB), attn__context_length=163840)
    (problem,) = big.problems()
    assert "--context " in problem
    fits = int(problem.split("--context ")[1].split()[0])
    assert 0 < fits < 163840
    assert plan_v3(machine(512 * GIB, 20 * GIB), attn__context_length=fits).problems() == []


def test_nobody_asked_for_the_models_whole_context() -> None:
    plan = plan_v3(machine(512 * GIB, 20 * GIB))
    assert plan.problems() == []
    assert 2048 <= plan.context < plan.wanted_context == 163840


def test_too_little_ram_is_refused() -> None:
    (problem,) = plan_v3(machine(64 * GIB, 80 * GIB), attn__context_length=4096).problems()
    assert problem.startswith("RAM: ")


def test_on_a_cpu_everything_is_in_ram() -> None:
    plan = plan_v3(machine(1024 * GIB), attn__context_length=4096)
    assert plan.gpu is None
    assert {item.place for item in plan.items} == {"RAM"}
    assert plan.kv_per_token == 61 * 576 * 2
    assert part(plan, "latent maps")[1] == 2 * 61 * 512 * 128 * 256


def test_a_missing_gpu_and_limits() -> None:
    with pytest.raises(PlanError, match="shows 1 GPUs"):
        plan_v3(machine(512 * GIB, 24 * GIB), attn__device="cuda:1")
    limited = plan_v3(machine(512 * GIB, 80 * GIB), attn__gpu_memory="24GiB", attn__context_length=4096)
    assert limited.gpu is not None
    assert limited.gpu.available == 24 * GIB


def test_a_real_file(tmp_path: Path) -> None:
    path = write_random_model(tmp_path / "m.gguf", "v3")
    with GGUFFile.open(path) as file:
        spec = read_spec(file)
        plan = make_plan(spec, file.tensors, machine(8 * GIB), load_config(None, {}, {}))
        assert sum(item.file_bytes for item in plan.items) + plan.skipped == file.nbytes
    assert plan.problems() == []
    assert plan.context == spec.context_length
    assert replace(plan, ram=replace(plan.ram, available=0)).problems() != []
