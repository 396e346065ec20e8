"""Every GPU kernel, launched as DeepSeek-V3 launches it: named cases, with tensors that nobody filled."""

from __future__ import annotations

from collections.abc import Callable

import torch
from gpu_expert_launches import expert_launches
from hop_launches import hop_launches
from sampling_launches import sampling_launches
from trimaran.gguf import GGMLType
from trimaran_kernels.gpu.expand import expand_rows
from trimaran_kernels.gpu.gate import GateRule, route
from trimaran_kernels.gpu.latents import Entry, LayerViews, describe_entry, view_layer
from trimaran_kernels.gpu.layouts import LAYOUTS
from trimaran_kernels.gpu.linear import quant_linear, quant_swiglu
from trimaran_kernels.gpu.matrix import QuantMatrix
from trimaran_kernels.gpu.mla_decode import decode_attention
from trimaran_kernels.gpu.mla_prefill import ChunkAttention
from trimaran_kernels.gpu.norm import add_rms_norm, rms_norm
from trimaran_kernels.gpu.rope import rotate_pairs
from trimaran_kernels.gpu.store import store_latents

HIDDEN = 7168


def launches() -> dict[str, Callable[[], object]]:
    """By name; launch one with Triton's driver replaced, or on a GPU."""
    return {
        **linear_launches(),
        **attention_launches(),
        **small_launches(),
        **hop_launches(),
        **sampling_launches(),
        **expert_launches(),
    }


def linear_launches() -> dict[str, Callable[[], object]]:
    cases: dict[str, Callable[[], object]] = {}
    for type_ in LAYOUTS:
        matrix = _matrix(type_, 4096)
        for n in (1, 8, 16):
            cases[f"linear {type_.name} {n}"] = _linear(n, matrix)
        cases[f"expand {type_.name}"] = _expand(matrix)
    matrix = _matrix(GGMLType.Q4_K, 4096)
    for n in (17, 50, 200):
        cases[f"linear Q4_K {n}"] = _linear(n, matrix)
    for n in (1, 8, 16, 200):
        cases[f"swiglu Q4_K {n}"] = _linear(n, matrix, matrix)
    for n in (1, 5):
        cases[f"linear Q4_K float32 {n}"] = _linear(n, matrix, dtype=torch.float32)
    return cases


def attention_launches() -> dict[str, Callable[[], object]]:
    cases: dict[str, Callable[[], object]] = {}
    for kind, width in (("bf16", 1152), ("fp8", 656), ("int8", 656)):
        entry = describe_entry(kind, 512, 64, 64)
        layer = view_layer(torch.empty(512, 64, width, dtype=torch.uint8), kind)
        cases[f"mla decode {kind}"] = _decode(layer, entry)
        cases[f"mla store {kind}"] = _store(layer, entry)
    cases["mla prefill"] = _prefill
    return cases


def small_launches() -> dict[str, Callable[[], object]]:
    x, weight = torch.empty(2, HIDDEN, dtype=torch.bfloat16), torch.empty(HIDDEN)
    heads, angles = torch.empty(2, 128, 192, dtype=torch.bfloat16), torch.empty(2, 32)
    router, bias = torch.empty(256, HIDDEN), torch.empty(256)
    rule = GateRule(256, 8, False, 8, 4, 2, True, 2.5)
    return {
        "small norm": lambda: rms_norm(x, weight, 1e-6),
        "small add and norm": lambda: add_rms_norm(x, x, weight, 1e-6),
        "small rotate": lambda: rotate_pairs(heads[..., 128:], angles, angles),
        "small gate": lambda: route(x, router, bias, rule),
    }


def _decode(layer: LayerViews, entry: Entry) -> Callable[[], object]:
    queries = torch.empty(2, 128, 576, dtype=torch.bfloat16)
    tables = torch.empty(2, 512, dtype=torch.int32)
    lengths = torch.empty(2, dtype=torch.int32)
    arguments = (queries, layer, entry, tables, lengths, lengths)
    return lambda: decode_attention(*arguments, longest=32768, scale=0.1)


def _prefill() -> None:
    queries = torch.empty(512, 128, 192, dtype=torch.bfloat16)
    attention = ChunkAttention(queries[..., :128], queries[..., 128:], 128, 64, 0.1)
    for n_keys in (64, 512):
        k_nope, values = queries.new_empty(n_keys, 128, 128), queries.new_empty(128, n_keys, 128)
        attention.add(k_nope, queries.new_empty(n_keys, 64), values)


def _store(layer: LayerViews, entry: Entry) -> Callable[[], object]:
    kv = torch.empty(16, 576, dtype=torch.bfloat16)
    angles = torch.empty(16, 32)
    slots = torch.empty(16, dtype=torch.int64)
    return lambda: store_latents(kv, torch.empty(512), 1e-6, angles, angles, slots, layer, entry)


def _matrix(type_: GGMLType, rows: int) -> QuantMatrix:
    raw = torch.zeros(rows * type_.row_bytes(HIDDEN), dtype=torch.uint8)
    return QuantMatrix.from_blocks(type_, raw, (rows, HIDDEN))


def _linear(
    n: int, matrix: QuantMatrix, up: QuantMatrix | None = None, dtype: torch.dtype = torch.bfloat16
) -> Callable[[], object]:
    x = torch.empty(n, HIDDEN, dtype=dtype)
    return lambda: quant_linear(x, matrix) if up is None else quant_swiglu(x, matrix, up)


def _expand(matrix: QuantMatrix) -> Callable[[], object]:
    return lambda: expand_rows(matrix, slice(0, 1024), torch.bfloat16)
