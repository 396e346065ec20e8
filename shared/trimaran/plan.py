"""What of a model goes where, whether it fits, and how fast it can decode at best.

A pure function of the model's dimensions and tensor directory, of the machine, and of the configuration. The
services ask it before they load; `trimaran plan` prints it.

How the attention service holds weights decides the sums. Its matrices stay quantised: on a CPU in the mapped
file, on a GPU in the forms of `gpu_weights`. Either way the embedding table is read from the mapped file, the
latent up-projection (Wkv_b) is expanded, and routed experts stay in RAM as the file has them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal

from trimaran.config import Config
from trimaran.errors import PlanError
from trimaran.gguf import GGMLType, TensorInfo
from trimaran.gpu_weights import gpu_bytes, is_re_encoded
from trimaran.kv_format import choose_format, entry_bytes
from trimaran.machine import Machine
from trimaran.spec import ModelSpec
from trimaran.units import format_bytes, parse_bytes

Place = Literal["GPU", "RAM"]

PAGE_TOKENS = 64
SMALLEST_CONTEXT = 2048
GPU_RESERVE = 768 << 20
"""CUDA's own context, its libraries' workspaces and fragmentation."""
RAM_RESERVE = 1 << 30
"""Three Python processes and the rest of the machine."""

GPU_PART_TOKENS = 2048
"""Tokens of a context whose keys and values a GPU expands at a time."""

_GPU_SPLITS = 512
_GPU_EXPANDED = 128 << 20
"""Blocks of 64 heads that attention splits of long contexts hand over, and the most bytes of expanded weights
with the product of one piece of them (trimaran_kernels.gpu)."""

_PASS_ROWS = 16384
_PART_BYTES = 256 << 20
_ONE_PART = 128
"""Rows of (token, head) that the CPU's attention computes in one pass, the most bytes that the parts of long
contexts hand over, and the tokens of the smallest part."""

_PARTS = (
    ("embeddings", r"^token_embd\."),
    ("head", r"^output(_norm)?\."),
    ("latent maps", r"^blk\.\d+\.attn_(kv|k|v)_b\."),
    ("attention", r"^blk\.\d+\.attn_"),
    ("routed experts", r"^blk\.\d+\.ffn_(gate|up|down)_exps\."),
    ("shared experts", r"^blk\.\d+\.ffn_(gate|up|down)_shexp\."),
    ("router", r"^blk\.\d+\.(ffn_gate_inp|exp_probs_b)"),
    ("dense layers", r"^blk\.\d+\.ffn_"),
)


@dataclass(frozen=True)
class Item:
    """A part of the model. `nbytes` is what it takes where it goes; `file_bytes` its size in the file."""

    part: str
    place: Place
    types: str
    file_bytes: int
    nbytes: int


@dataclass(frozen=True)
class Budget:
    """Bytes needed and there, of one kind of memory."""

    needed: int
    available: int

    @property
    def spare(self) -> int:
        """What is left; negative if it does not fit."""
        return self.available - self.needed


@dataclass(frozen=True)
class Bandwidth:
    """Bytes a second. None: unknown."""

    ram: float | None = None
    gpu: float | None = None


@dataclass(frozen=True)
class Speed:
    """Weights read for a token of one request, and the tokens a second that bandwidth allows at most."""

    ram_bytes: int
    gpu_bytes: int
    tokens_per_second: float | None


@dataclass(frozen=True)
class Plan:
    """The whole plan.

    Attributes:
        items: the parts of the model, and where they go.
        skipped: bytes of the file that nobody uses, e.g. layers for multi-token prediction.
        kv_per_token: bytes that the latent cache takes per token.
        context: tokens that it is planned for.
        wanted_context: tokens that the configuration, or else the model, asks for.
        kv_bytes, workspace: bytes of the cache and of passing tensors, on the attention service's device.
        gpu: None when attention runs on the CPU.
        re_encoded: types of matrices that the GPU has no kernel for and holds as Q8_0.
    """

    model: str
    device: str
    items: tuple[Item, ...]
    skipped: int
    kv_per_token: int
    context: int
    wanted_context: int
    kv_bytes: int
    workspace: int
    gpu: Budget | None
    ram: Budget
    re_encoded: tuple[str, ...]
    speed: Speed

    def problems(self) -> list[str]:
        """Why it cannot work, one sentence each; empty if it fits."""
        found = []
        if self.gpu is not None and self.gpu.spare < 0:
            found.append(self._gpu_problem(self.gpu))
        if self.ram.spare < 0:
            found.append(
                f"RAM: {_shortage(self.ram)}; take a smaller quantisation of the model, split the experts"
                " over several hosts (experts.endpoints), or add memory"
            )
        return found

    def _gpu_problem(self, gpu: Budget) -> str:
        weights = sum(item.nbytes for item in self.items if item.place == "GPU")
        remedy = "take a larger GPU, or --device cpu"
        if gpu.spare + self.kv_bytes > 0:
            fits = (gpu.spare + self.kv_bytes) // self.kv_per_token // PAGE_TOKENS * PAGE_TOKENS
            remedy = f"lower the context (--context {fits} fits), or {remedy}"
        return (
            f"GPU: {_shortage(gpu)} ({format_bytes(weights)} weights, {format_bytes(self.kv_bytes)} cache of"
            f" {self.context} tokens, {format_bytes(self.workspace)} workspace); {remedy}"
        )


def make_plan(
    spec: ModelSpec,
    tensors: Mapping[str, TensorInfo],
    machine: Machine,
    config: Config,
    bandwidth: Bandwidth | None = None,
) -> Plan:
    """Plans a model on a machine.

    Args:
        spec: the model's dimensions.
        tensors: its tensor directory, by name.
        machine: what is there; `memory.limit` and `gpus` count.
        config: `attn.device`, `gpu_memory`, `context_length`, `kv_memory`, `kv_dtype`, `max_step_tokens`,
            `max_running`.
        bandwidth: for the prediction of speed.

    Raises:
        PlanError: the configuration asks for a GPU that is not there.
    """
    gpu_memory = _gpu_memory(machine, config)
    on_gpu = gpu_memory is not None
    items, skipped = _items(spec, tensors, on_gpu=on_gpu, exact=config.precision == "exact")
    wanted = config.attn.context_length or spec.context_length
    exact = config.precision == "exact" and not on_gpu
    kv_per_token = spec.n_layers * entry_bytes(spec, choose_format(config.attn.kv_dtype, exact=exact))
    fixed = _fixed_bytes(items, "GPU") + GPU_RESERVE if on_gpu else _fixed_bytes(items, "RAM") + RAM_RESERVE
    available = gpu_memory if gpu_memory is not None else machine.memory.limit
    context = _context(spec, config, wanted, kv_per_token, available - fixed, on_gpu=on_gpu)
    kv_bytes = _kv_bytes(config, context, kv_per_token)
    workspace = _workspace(spec, config, context, on_gpu=on_gpu)
    attention = kv_bytes + workspace
    ram_needed = _fixed_bytes(items, "RAM") + RAM_RESERVE + (0 if on_gpu else attention)
    return Plan(
        model=spec.name,
        device=_device_name(machine, config) if on_gpu else "cpu",
        items=items,
        skipped=skipped,
        kv_per_token=kv_per_token,
        context=context,
        wanted_context=wanted,
        kv_bytes=kv_bytes,
        workspace=workspace,
        gpu=Budget(fixed + attention, gpu_memory) if gpu_memory is not None else None,
        ram=Budget(ram_needed, machine.memory.limit),
        re_encoded=_re_encoded(spec, tensors) if on_gpu else (),
        speed=_speed(spec, items, bandwidth or Bandwidth()),
    )


def check_plan(plan: Plan) -> None:
    """Refuses a plan that cannot work.

    Raises:
        PlanError: with the sentences of `Plan.problems`.
    """
    problems = plan.problems()
    if problems:
        raise PlanError(f"{plan.model} does not fit. " + "; ".join(problems))


# --- parts --------------------------------------------------------------------------------------------------


def _shortage(budget: Budget) -> str:
    return (
        f"{format_bytes(budget.needed)} are needed, {format_bytes(budget.available)} are there,"
        f" {format_bytes(-budget.spare)} too little"
    )


def _gpu_memory(machine: Machine, config: Config) -> int | None:
    """Bytes of the GPU to plan for, or None for a CPU."""
    device = config.attn.device
    if device == "cpu" or (device == "auto" and not machine.gpus):
        return None
    number = int(device.partition(":")[2] or 0) if device != "auto" else 0
    if number >= len(machine.gpus):
        raise PlanError(
            f"attn.device is {device}, but this machine shows {len(machine.gpus)} GPUs",
            remedy="`trimaran doctor` tells what is missing; --device cpu needs none",
        )
    limit = config.attn.gpu_memory
    memory = machine.gpus[number].memory
    return memory if limit == "auto" else min(memory, parse_bytes(limit))


def _device_name(machine: Machine, config: Config) -> str:
    number = int(config.attn.device.partition(":")[2] or 0)
    return f"cuda:{number} ({machine.gpus[number].name})"


def _items(
    spec: ModelSpec, tensors: Mapping[str, TensorInfo], *, on_gpu: bool, exact: bool
) -> tuple[tuple[Item, ...], int]:
    groups: dict[str, list[TensorInfo]] = {part: [] for part, _ in _PARTS}
    skipped = 0
    for info in tensors.values():
        part = _part(spec, info.name)
        if part is None:
            skipped += info.nbytes
        else:
            groups[part].append(info)
    items = [_item(part, infos, on_gpu=on_gpu, exact=exact) for part, infos in groups.items() if infos]
    return tuple(items), skipped


def _part(spec: ModelSpec, name: str) -> str | None:
    layer = re.match(r"^blk\.(\d+)\.", name)
    if layer is not None and int(layer[1]) >= spec.n_layers:
        return None
    return next((part for part, pattern in _PARTS if re.match(pattern, name)), None)


def _item(part: str, infos: list[TensorInfo], *, on_gpu: bool, exact: bool) -> Item:
    file_bytes = sum(info.nbytes for info in infos)
    place: Place = "GPU" if on_gpu and part not in {"embeddings", "routed experts"} else "RAM"
    if place == "GPU":
        nbytes = sum(_gpu_bytes(part, info) for info in infos)
    elif part == "latent maps":
        nbytes = sum(_map_bytes(info, exact=exact) for info in infos)
    else:
        nbytes = file_bytes
    return Item(part, place, _types(infos), file_bytes, nbytes)


def _map_bytes(info: TensorInfo, *, exact: bool) -> int:
    """On a CPU: float32 stays so, everything else becomes binary16 unless nothing shall be rounded."""
    return prod(info.shape) * (4 if exact or info.type == GGMLType.F32 else 2)


def _gpu_bytes(part: str, info: TensorInfo) -> int:
    """Norms and the router stay float32, the latent maps become bfloat16."""
    if part == "router" or len(info.shape) == 1:
        return 4 * prod(info.shape)
    return 2 * prod(info.shape) if part == "latent maps" else gpu_bytes(info)


def _re_encoded(spec: ModelSpec, tensors: Mapping[str, TensorInfo]) -> tuple[str, ...]:
    """Types of matrices that a GPU holds as the nearest Q8_0 weights."""
    matrices = ("attention", "head", "dense layers", "shared experts")
    types = {info.type for info in tensors.values() if _part(spec, info.name) in matrices}
    return tuple(sorted(type_.name for type_ in types if is_re_encoded(type_)))


def _types(infos: list[TensorInfo]) -> str:
    """Names of the types, the one with the most bytes first."""
    sizes: Counter[str] = Counter()
    for info in infos:
        sizes[info.type.name] += info.nbytes
    return " ".join(name for name, _ in sizes.most_common())


def _fixed_bytes(items: tuple[Item, ...], place: Place) -> int:
    return sum(item.nbytes for item in items if item.place == place)


def _context(
    spec: ModelSpec, config: Config, wanted: int, kv_per_token: int, room: int, *, on_gpu: bool
) -> int:
    """Tokens to plan for: those asked for, or, when nobody asked, as many of the model's as fit."""
    if config.attn.context_length is not None:
        return wanted
    least = min(wanted, SMALLEST_CONTEXT)
    context = wanted
    while context > least:
        workspace = _workspace(spec, config, context, on_gpu=on_gpu)
        if _kv_bytes(config, context, kv_per_token) + workspace <= room:
            return context
        context = max(least, context // 2)
    return context


def _kv_bytes(config: Config, context: int, kv_per_token: int) -> int:
    """The cache: as configured, or one full context."""
    pages = -(-context // PAGE_TOKENS)
    needed = pages * PAGE_TOKENS * kv_per_token
    return needed if config.attn.kv_memory == "auto" else max(needed, parse_bytes(config.attn.kv_memory))


def _workspace(spec: ModelSpec, config: Config, context: int, *, on_gpu: bool) -> int:
    """Tensors that live during a step: activations, logits, and what attention needs besides."""
    element = 2 if on_gpu else 4
    heads = spec.n_heads * (2 * spec.qk_nope_head_dim + 2 * spec.qk_rope_head_dim + spec.v_head_dim)
    widest = max(spec.dense_intermediate_size, spec.moe.n_shared * spec.moe.intermediate_size)
    activations = config.attn.max_step_tokens * (4 * spec.hidden_size + heads + 3 * widest) * element
    logits = config.attn.max_running * spec.vocab_size * 4 * 2
    return activations + logits + (_gpu_scratch if on_gpu else _cpu_scratch)(spec, config, context)


def _gpu_scratch(spec: ModelSpec, config: Config, _context: int) -> int:
    """Absorbed queries and mixed latents with the splits' sums, expanded keys and values of a part, weights.

    No scores, keys or values of a whole context exist at any time.
    """
    latent, rows = spec.kv_lora_rank, config.attn.max_step_tokens * spec.n_heads
    absorbed = rows * 2 * (2 * latent + spec.qk_rope_head_dim)
    splits = 4 * latent * (rows + 64 * _GPU_SPLITS)
    expanded = 2 * GPU_PART_TOKENS * spec.n_heads * (spec.qk_nope_head_dim + spec.v_head_dim)
    return absorbed + splits + expanded + 4 * rows * spec.v_head_dim + _GPU_EXPANDED


def _cpu_scratch(spec: ModelSpec, config: Config, context: int) -> int:
    """Absorbed queries and mixed latents of a pass, and its parts (kernels/csrc/attention/absorbed.cpp).

    No scores, keys or values of a whole context exist at any time.
    """
    width = spec.kv_lora_rank + spec.qk_rope_head_dim
    rows = min(_PASS_ROWS, config.attn.max_step_tokens * spec.n_heads)
    parts = min(_PART_BYTES, 4 * spec.kv_lora_rank * spec.n_heads * 100 * config.attn.max_running)
    return 4 * rows * (width + spec.kv_lora_rank) + (parts if context > _ONE_PART else 0)


def _speed(spec: ModelSpec, items: tuple[Item, ...], bandwidth: Bandwidth) -> Speed:
    """Bytes of weights that one token reads: everything dense once, and `top_k` experts of each layer."""
    read: dict[Place, int] = {"GPU": 0, "RAM": 0}
    for item in items:
        if item.part == "routed experts":
            read[item.place] += item.nbytes * spec.moe.top_k // spec.moe.n_experts
        elif item.part != "embeddings":
            read[item.place] += item.nbytes
    ram_s = read["RAM"] / bandwidth.ram if bandwidth.ram else None
    gpu_s = read["GPU"] / bandwidth.gpu if bandwidth.gpu else None
    if ram_s is None or (gpu_s is None and read["GPU"]):
        return Speed(read["RAM"], read["GPU"], None)
    return Speed(read["RAM"], read["GPU"], 1 / (ram_s + (gpu_s or 0.0)))
