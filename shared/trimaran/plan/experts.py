"""Routed experts on a GPU: what one takes there, how much memory they get, what computing them needs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from trimaran.config import AttnConfig
from trimaran.gguf import TensorInfo
from trimaran.gpu_weights import gpu_bytes, gpu_type
from trimaran.plan.sizes import largest_step
from trimaran.spec import ModelSpec
from trimaran.units import parse_bytes

AUTO_SHARE = 0.75
"""Of what the plan leaves; the rest lets more requests run side by side."""

STREAMED_EXPERTS = 4
"""Experts of one of the two buffers that streaming goes through."""

PART_BYTES = 64 << 20
"""Of the outputs of each token's experts before they are summed (trimaran_kernels.gpu.grouped_gemm)."""

_TENSOR = re.compile(r"^blk\.(\d+)\.ffn_(gate|up|down)_exps\.weight$")


@dataclass(frozen=True)
class ExpertSize:
    """Bytes of one expert of a layer, in the file and on a GPU. native: whether both hold the same types."""

    file: int
    gpu: int
    native: bool


def expert_sizes(spec: ModelSpec, tensors: Mapping[str, TensorInfo]) -> dict[int, ExpertSize]:
    """By layer, without those that a GPU cannot hold quantised: layers of plain numbers."""
    found: dict[int, list[TensorInfo]] = {}
    for info in tensors.values():
        match = _TENSOR.match(info.name)
        if match is not None and int(match[1]) < spec.n_layers:
            found.setdefault(int(match[1]), []).append(info)
    return {
        layer: ExpertSize(
            sum(info.nbytes for info in infos) // spec.moe.n_experts,
            sum(gpu_bytes(info) for info in infos) // spec.moe.n_experts,
            all(gpu_type(info.type) is info.type for info in infos),
        )
        for layer, infos in sorted(found.items())
        if len(infos) == len(("gate", "up", "down")) and all(info.type.is_quantised for info in infos)
    }


def room_for_experts(config: AttnConfig, spare: int) -> int:
    """Bytes for experts on one device: as configured, or a share of what is spare there."""
    if config.gpu_experts == "off":
        return 0
    if config.gpu_experts == "auto":
        return int(max(0, spare) * AUTO_SHARE)
    return parse_bytes(config.gpu_experts)


def expert_workspace(spec: ModelSpec, config: AttnConfig) -> int:
    """Bytes of a step's activations between the experts' two halves, and of their outputs."""
    if config.gpu_experts == config.stream_prefill == "off":
        return 0
    tokens = largest_step(config, on_gpu=True)
    places = tokens * spec.moe.top_k
    activations = 2 * places * (2 * spec.moe.intermediate_size) + 8 * tokens * spec.hidden_size
    return activations + PART_BYTES


def stream_buffers(spec: ModelSpec, tensors: Mapping[str, TensorInfo]) -> tuple[int, int]:
    """Of two buffers of experts: bytes on a GPU, and of host memory.

    The GPU has each as the file has it, as kernels read it, and once more while one becomes the other.
    """
    native = [size for size in expert_sizes(spec, tensors).values() if size.native]
    on_gpu = max((size.file + 2 * size.gpu for size in native), default=0)
    on_host = max((size.file for size in native), default=0)
    return 2 * STREAMED_EXPERTS * on_gpu, 2 * STREAMED_EXPERTS * on_host
