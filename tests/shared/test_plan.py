from __future__ import annotations

from dataclasses import replace
from functools import partial
from math import prod
from pathlib import Path

import pytest
from trimaran.config_loader import load_config
from trimaran.errors import ConfigError, PlanError
from trimaran.gguf import GGMLType, GGUFFile, TensorInfo
from trimaran.gguf.mix import mix_named
from trimaran.machine import Gpu, Machine, Memory
from trimaran.model_tensors import global_shapes, layer_shapes
from trimaran.plan import Bandwidth, Plan, check_plan, make_plan
from trimaran.plan.experts import expert_sizes
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
    # 58 layers × 256 experts × 3 matrices of 7168 × 2048 at 4.5 bits, packed at 4.625
    assert part(plan, "routed experts") == ("RAM", 58 * 256 * 3 * 7168 * 2048 * 148 // 256)
    mapped = plan_v3(machine(512 * GIB, 80 * GIB), experts__store="off")
    assert part(mapped, "routed experts") == ("RAM", 58 * 256 * 3 * 7168 * 2048 * 144 // 256)
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


def test_exact_experts_are_packed_for_matrix_tiles_alone() -> None:
    plain = machine(512 * GIB, 80 * GIB)
    tiles = replace(plain, isas=("avx2", "avx512", "avx512_vnni", "avx512_bf16", "amx"))
    sizes = {
        there.isas[-1]: part(plan_v3(there, precision="exact"), "routed experts")[1]
        for there in (plain, tiles)
    }
    assert sizes == {name: 58 * 256 * 3 * 7168 * 2048 * n // 256 for name, n in (("avx2", 144), ("amx", 148))}
    off = plan_v3(tiles, precision="exact", experts__store="off")
    assert part(off, "routed experts")[1] == sizes["avx2"]


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


@pytest.mark.parametrize("precision", ["int8", "exact"])
@pytest.mark.parametrize("there", [(1000, ()), (1000, (80,))], ids=["cpu", "gpu"])
def test_a_tied_head_takes_memory_in_its_own_form_alone(
    there: tuple[int, tuple[int, ...]], precision: str
) -> None:
    ram, gpus = there
    options = load_config(None, {"precision": precision, "attn.context_length": 4096})
    own = tensors_of(V3)
    table = own["token_embd.weight"]
    own["output.weight"] = replace(table, name="output.weight")
    tied = {name: info for name, info in own.items() if name != "output.weight"}
    plain, shared = (
        make_plan(V3, tensors, machine(ram << 30, *(gpu << 30 for gpu in gpus)), options)
        for tensors in (own, tied)
    )
    heads = [next(item for item in plan.items if item.part == "head") for plan in (plain, shared)]
    assert heads[0].file_bytes - heads[1].file_bytes == table.nbytes
    is_mapped = precision == "exact" and not gpus
    assert heads[0].nbytes - heads[1].nbytes == (table.nbytes if is_mapped else 0)
    assert heads[0].place == heads[1].place


def test_decode_is_bound_by_the_bytes_read() -> None:
    plan = plan_v3(machine(512 * GIB, 80 * GIB), Bandwidth(ram=440e9, gpu=1000e9))
    experts = 58 * 8 * 3 * 7168 * 2048 * 148 // 256
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


def test_layers_are_shared_by_two_gpus() -> None:
    """What one 16 GiB card cannot hold two can; each has about half of it, the last one the head too."""
    two = machine(512 * GIB, 16 * GIB, 16 * GIB)
    plan = plan_v3(two, attn__device="cuda:0+cuda:1", attn__context_length=65536)
    assert plan.problems() == []
    first, second = plan.gpus
    assert (first.first_layer, first.last_layer + 1, second.last_layer) == (0, second.first_layer, 60)
    assert [share.number for share in plan.gpus] == [0, 1]
    fullness = [share.budget.needed / share.budget.available for share in plan.gpus]
    assert max(fullness) - min(fullness) < 0.05
    one = plan_v3(machine(512 * GIB, 80 * GIB), attn__context_length=65536)
    assert first.weights + second.weights == one.gpus[0].weights
    assert first.kv_bytes + second.kv_bytes == plan.kv_bytes == one.kv_bytes
    assert second.workspace - first.workspace == 2 * 16 * 129280 * 4 * 4, "the logits are beside the head"
    assert plan.gpu is not None
    assert plan.gpu.needed == first.budget.needed + second.budget.needed
    deferring = plan_v3(two, attn__device="cuda:0+cuda:1", attn__context_length=65536, attn__defer_experts=2)
    assert all(
        launched.workspace < replayed.workspace - (64 << 20)
        for launched, replayed in zip(deferring.gpus, plan.gpus, strict=True)
    ), "steps that defer experts are recorded on one GPU only"


def test_auto_takes_as_few_gpus_as_it_needs() -> None:
    cards = [16 * GIB] * 3
    assert len(plan_v3(machine(512 * GIB, *cards), attn__context_length=4096).gpus) == 1
    assert len(plan_v3(machine(512 * GIB, *cards), attn__context_length=98304).gpus) == 2
    assert len(plan_v3(machine(512 * GIB, 6 * GIB, 6 * GIB, 6 * GIB)).gpus) == 3


def test_layers_by_hand() -> None:
    two = machine(512 * GIB, 24 * GIB, 24 * GIB)
    options: dict[str, object] = {"attn__device": "cuda:1+cuda:0", "attn__context_length": 4096}
    plan = plan_v3(two, attn__layers="0-9,10-60", **options)
    assert [(s.number, s.first_layer, s.last_layer) for s in plan.gpus] == [(1, 0, 9), (0, 10, 60)]
    with pytest.raises(ConfigError, match=r"attn.layers has 1 ranges, attn.device names 2"):
        plan_v3(two, attn__layers="0-60", **options)
    chosen = plan_v3(two, attn__layers="0-30,31-60", attn__context_length=4096)
    assert [(s.number, s.first_layer, s.last_layer) for s in chosen.gpus] == [(0, 0, 30), (1, 31, 60)]
    for device in ("cpu", "auto"):
        with pytest.raises(ConfigError, match=r"attn.layers is 0-30,31-60, but attention runs on the CPU"):
            plan_v3(machine(512 * GIB), attn__layers="0-30,31-60", attn__device=device)


def test_what_is_missing_on_which_gpu() -> None:
    there = machine(512 * GIB, 24 * GIB, 4 * GIB)
    options = {"attn__device": "cuda:0+cuda:1", "attn__layers": "0-30,31-60"}
    plan = plan_v3(there, **options, attn__context_length=4096)
    (problem,) = plan.problems()
    assert problem.startswith("GPU cuda:1: ")
    assert "layers 31-60" in problem
    assert "4.00 GiB are there" in problem
    assert "--context" not in problem, "no context fits a card that cannot hold the weights"


def test_a_context_that_fits_several_gpus_is_named() -> None:
    there = machine(512 * GIB, 12 * GIB, 12 * GIB)
    big = plan_v3(there, attn__device="cuda:0+cuda:1", attn__context_length=163840)
    fits = int(big.problems()[0].split("--context ")[1].split()[0])
    fitting = plan_v3(there, attn__device="cuda:0+cuda:1", attn__context_length=fits)
    assert fitting.problems() == []


def test_wrong_gpus_are_refused() -> None:
    two = machine(512 * GIB, 24 * GIB, 24 * GIB)
    with pytest.raises(PlanError, match="shows 2 GPUs"):
        plan_v3(two, attn__device="cuda:0+cuda:2")
    with pytest.raises(PlanError, match="named twice"):
        plan_v3(two, attn__device="cuda:1+cuda:1")


def test_services_that_share_the_ram() -> None:
    """Each has a cache, a workspace, and packed weights of its own; experts and embeddings are there once."""
    options: dict[str, object] = {"attn__device": "cpu", "attn__context_length": 4096}
    one = plan_v3(machine(1024 * GIB), **options)
    three = plan_v3(machine(1024 * GIB), **options, attn__replicas="cpu,cpu,cpu")
    own = ("attention", "head", "dense layers", "shared experts", "latent maps")
    copied = sum(item.nbytes for item in one.items if item.part in own)
    assert three.ram.needed - one.ram.needed == 2 * (copied + one.kv_bytes + one.workspace)
    exact = [
        plan_v3(machine(1024 * GIB), **options, precision="exact", attn__replicas=devices)
        for devices in ("cpu", "cpu,cpu")
    ]
    maps = part(exact[0], "latent maps")[1]
    added = exact[1].ram.needed - exact[0].ram.needed
    assert added == maps + exact[0].kv_bytes + exact[0].workspace


def test_replicas_share_one_ram() -> None:
    """What streams to every GPU, and the services on the CPU, count in every replica's plan."""
    there, options = machine(1024 * GIB, 24 * GIB, 24 * GIB), {"attn__stream_prefill": "auto"}
    one = plan_v3(there, **options, attn__device="cuda:0")
    two = plan_v3(there, **options, attn__device="cuda:0", attn__replicas="cuda:0,cuda:1")
    plain = plan_v3(there, attn__device="cuda:0")
    staged = one.ram.needed - plain.ram.needed
    assert staged > 0
    assert two.ram.needed == one.ram.needed + staged
    mixed = [
        plan_v3(there, **options, attn__device=device, attn__replicas="cuda:0,cpu")
        for device in ("cuda:0", "cpu")
    ]
    alone = plan_v3(there, attn__device="cpu")
    assert mixed[0].ram == mixed[1].ram
    assert mixed[0].gpu == one.gpu
    assert mixed[1].ram.needed == alone.ram.needed + staged


def test_a_replica_on_the_cpu_may_be_what_is_too_much() -> None:
    options = {"attn__device": "cuda:0", "attn__context_length": 16384}
    there = machine(plan_v3(machine(1024 * GIB, 24 * GIB), **options).ram.needed + GIB, 24 * GIB)
    assert plan_v3(there, **options).problems() == []
    (problem,) = plan_v3(there, **options, attn__replicas="cuda:0,cpu").problems()
    assert problem.startswith("RAM")


def test_a_real_file(tmp_path: Path) -> None:
    path = write_random_model(tmp_path / "m.gguf", "v3")
    with GGUFFile.open(path) as file:
        spec = read_spec(file)
        plan = make_plan(spec, file.tensors, machine(8 * GIB), load_config(None, {}, {}))
        assert sum(item.file_bytes for item in plan.items) + plan.skipped == file.nbytes
    assert plan.problems() == []
    assert plan.context == spec.context_length
    assert replace(plan, ram=replace(plan.ram, available=0)).problems() != []


def test_experts_on_a_gpu_are_planned_for() -> None:
    there = machine(512 * GIB, 24 * GIB)
    options = {"attn__context_length": 32768, "attn__kv_dtype": "fp8"}
    without = plan_v3(there, **options)
    sized = plan_v3(there, attn__gpu_experts="4GiB", **options)
    auto = plan_v3(there, attn__gpu_experts="auto", **options)
    assert (without.gpu, sized.gpu, auto.gpu) != (None, None, None)
    assert without.experts == 0
    assert sized.experts == 4 * GIB
    # between their two halves, 512 tokens × 8 choices × 2048 values and more, and the parts of their sums
    more = sized.workspace - without.workspace
    assert more == 2 * 4096 * 2 * 2048 + 8 * 512 * 7168 + (64 << 20)
    assert sized.gpu.needed == without.gpu.needed + more + 4 * GIB
    assert auto.experts == int((without.gpu.spare - more) * 0.75)
    assert auto.problems() == []
    assert plan_v3(machine(512 * GIB), attn__gpu_experts="auto").experts == 0


def test_experts_that_do_not_fit_a_gpu_are_named() -> None:
    plan = plan_v3(machine(512 * GIB, 24 * GIB), attn__gpu_experts="20GiB", attn__context_length=32768)
    assert "20.0 GiB routed experts); lower attn.gpu_experts, or" in plan.problems()[0]


def test_on_a_cpu_they_take_ram() -> None:
    without, sized = (plan_v3(machine(512 * GIB), attn__gpu_experts=size) for size in ("off", "1GiB"))
    assert sized.ram.needed - without.ram.needed == GIB


def test_sizes_of_experts() -> None:
    sizes = expert_sizes(V3, q4_k_m(V3))
    weights = 7168 * 2048
    q4, q6 = weights * 148 // 256, weights * 210 // 256
    assert len(sizes) == 58
    assert {size.gpu for size in sizes.values()} == {3 * q4, 2 * q4 + q6}
    assert all(size.native and size.file < size.gpu for size in sizes.values())
    assert (
        expert_sizes(V3, {name: replace(info, type=GGMLType.F16) for name, info in q4_k_m(V3).items()}) == {}
    )
    mixed = {name: replace(info, type=GGMLType.Q5_0) for name, info in q4_k_m(V3).items() if "_exps" in name}
    assert not any(size.native for size in expert_sizes(V3, mixed).values())


def test_streaming_experts_takes_two_buffers() -> None:
    there = machine(512 * GIB, 24 * GIB)
    options = {"attn__context_length": 32768, "attn__kv_dtype": "fp8"}
    without, streaming = plan_v3(there, **options), plan_v3(there, attn__stream_prefill="auto", **options)
    assert without.gpu is not None
    assert streaming.gpu is not None
    file, gpu = 3 * 7168 * 2048 * 144 // 256, 3 * 7168 * 2048 * 148 // 256
    more = 2 * 4096 * 2 * 2048 + 8 * 512 * 7168 + (64 << 20)
    assert streaming.gpu.needed - without.gpu.needed == more + 2 * 4 * (file + 2 * gpu)
    assert streaming.ram.needed - without.ram.needed == 2 * 4 * file
