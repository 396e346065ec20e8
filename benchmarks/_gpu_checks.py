"""Every GPU kernel against its torch reference: relative errors, and the largest that rounding explains."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from _gpu_bench import Bench
from _gpu_inputs import poison, random_layer, random_matrix, random_tokens
from torch import Tensor
from trimaran.gguf import GGMLType
from trimaran_kernels.gpu.expand import expand_rows
from trimaran_kernels.gpu.latents import describe_entry, view_layer
from trimaran_kernels.gpu.layouts import LAYOUTS
from trimaran_kernels.gpu.linear import quant_linear, quant_swiglu
from trimaran_kernels.gpu.matrix import QuantMatrix
from trimaran_kernels.gpu.mla_decode import decode_attention
from trimaran_kernels.gpu.mla_prefill import ChunkAttention
from trimaran_kernels.gpu.mla_reference import decode_reference, entries_reference, store_reference
from trimaran_kernels.gpu.reference import expand_reference, linear_reference
from trimaran_kernels.gpu.store import store_latents

LIMITS = {torch.bfloat16: 1e-2, torch.float32: 1e-5}


@dataclass(frozen=True)
class Sizes:
    """How large the problems are: a GPU's, or what an interpreter can do. `batches`: beyond one token."""

    rows: int
    width: int
    batches: tuple[int, ...]
    heads: int
    latent: int
    rope: int
    contexts: tuple[int, ...]
    dtype: torch.dtype


REAL = Sizes(2051, 7168, (2, 16, 17, 64, 200, 300), 128, 512, 64, (1, 64, 700, 32768), torch.bfloat16)
TINY = Sizes(5, 256, (3,), 2, 64, 16, (1, 70), torch.float32)


def check_one_token(bench: Bench) -> None:
    """Quantised matrices, every type: the rows themselves, and one token through them."""
    sizes = _sizes(bench)
    for type_ in LAYOUTS:
        with bench.part(f"linear {type_.name}"):
            matrix = random_matrix(type_, sizes.rows, sizes.width, bench.device)
            with bench.part(f"expand {type_.name}"):
                _check_expand(matrix, bench)
            _check_linear(matrix, sizes, 1, bench)
    with bench.part("swiglu 1"):
        _check_swiglu(sizes, (1,), bench)


def check_tokens(bench: Bench) -> None:
    """The same for more tokens, by every way that a batch takes."""
    sizes = _sizes(bench)
    for type_ in LAYOUTS:
        with bench.part(f"linear {type_.name}"):
            matrix = random_matrix(type_, sizes.rows, sizes.width, bench.device)
            for n in sizes.batches:
                _check_linear(matrix, sizes, n, bench)
    with bench.part("swiglu"):
        _check_swiglu(sizes, sizes.batches, bench)


def check_decode_attention(bench: Bench) -> None:
    """What is written and read between the projections, for each form of the cache."""
    sizes = _sizes(bench)
    for kind in ("bf16", "fp8", "int8"):
        if kind != "bf16" or sizes.dtype != torch.float32:  # the interpreter cuts bfloat16 off
            with bench.part(f"mla store {kind}"):
                _check_store(kind, sizes, bench)
            with bench.part(f"mla decode {kind}"):
                _check_decode(kind, sizes, bench)


def check_prefill_attention(bench: Bench) -> None:
    """Expanded keys and values."""
    with bench.part("mla prefill"):
        _check_prefill(_sizes(bench), bench)


def _sizes(bench: Bench) -> Sizes:
    return TINY if bench.tiny else REAL


def _check_expand(matrix: QuantMatrix, bench: Bench) -> None:
    expected = expand_reference(matrix)
    poison(4 * expected.numel(), bench.device)
    got = expand_rows(matrix, slice(0, matrix.shape[0]), torch.float32)
    bench.check(f"expand {matrix.type.name}", _error(got, expected), 1e-6)


def _check_linear(matrix: QuantMatrix, sizes: Sizes, n: int, bench: Bench) -> None:
    with bench.part(f"linear {matrix.type.name} {n}"):
        x = random_tokens(n, sizes.width, bench.device, sizes.dtype)
        expected = linear_reference(x, matrix)
        poison(4 * expected.numel(), bench.device)
        error = _error(quant_linear(x, matrix), expected)
        bench.check(f"linear {matrix.type.name} {n}", error, LIMITS[sizes.dtype])


def _check_swiglu(sizes: Sizes, batches: tuple[int, ...], bench: Bench) -> None:
    device = bench.device
    gate, up = (random_matrix(GGMLType.Q4_K, sizes.rows, sizes.width, device) for _ in range(2))
    for n in batches:
        x = random_tokens(n, sizes.width, device, sizes.dtype)
        expected = linear_reference(x, gate, up)
        poison(4 * expected.numel(), device)
        limit = 2 * LIMITS[sizes.dtype]
        bench.check(f"swiglu Q4_K {n}", _error(quant_swiglu(x, gate, up), expected), limit)


def _check_store(kind: str, sizes: Sizes, bench: Bench) -> None:
    device = bench.device
    n, width = 3, sizes.latent + sizes.rope
    entry = describe_entry(kind, sizes.latent, sizes.rope, 64)
    nbytes = entry.code_stride * (1 if entry.form else 2)
    raw = torch.full((2, 64, nbytes), 0x7F, dtype=torch.uint8, device=device)
    layer = view_layer(raw, kind)
    kv, angles = random_tokens(n, width, device, sizes.dtype), torch.rand(n, sizes.rope // 2, device=device)
    weight, slots = torch.rand(sizes.latent, device=device) + 0.5, torch.tensor([0, 77, 127], device=device)
    store_latents(kv, weight, 1e-6, angles.cos(), angles.sin(), slots, layer, entry)
    expected = store_reference(kv, weight, 1e-6, angles.cos(), angles.sin(), entry)
    limit = {"bf16": 4e-3, "fp8": 4e-2, "int8": 2e-2}[kind]
    bench.check(f"mla store {kind}", _error(entries_reference(layer, entry, slots), expected), limit)


def _check_decode(kind: str, sizes: Sizes, bench: Bench) -> None:
    device = bench.device
    pages = -(-max(sizes.contexts) // 64)
    layer, entry = random_layer(kind, pages, sizes.latent, sizes.rope, device)
    n = len(sizes.contexts)
    tables = torch.stack([torch.randperm(pages, device=device) for _ in range(n)]).int()
    requests = torch.arange(n, dtype=torch.int32, device=device)
    lengths = torch.tensor(sizes.contexts, dtype=torch.int32, device=device)
    queries = random_tokens(n * sizes.heads, sizes.latent + sizes.rope, device, sizes.dtype)
    queries = queries.view(n, sizes.heads, -1)
    expected = decode_reference(queries, layer, entry, tables, requests, lengths, 0.05)
    poison(4 * expected.numel() * 300, device)
    longest = max(sizes.contexts)
    got = decode_attention(queries, layer, entry, tables, requests, lengths, longest=longest, scale=0.05)
    bench.check(f"mla decode {kind}", _error(got, expected), LIMITS[sizes.dtype])


def _check_prefill(sizes: Sizes, bench: Bench) -> None:
    """A chunk behind a prefix, in two parts."""
    device = bench.device
    n, prefix, nope = 70, 60, 2 * sizes.rope
    queries = random_tokens(n * sizes.heads, nope + sizes.rope, device, sizes.dtype).view(n, sizes.heads, -1)
    length = n + prefix
    k_nope = random_tokens(length * sizes.heads, nope, device, sizes.dtype).view(length, sizes.heads, nope)
    k_rope = random_tokens(length, sizes.rope, device, sizes.dtype)
    values = random_tokens(sizes.heads * length, nope, device, sizes.dtype).view(sizes.heads, length, nope)
    attention = ChunkAttention(queries[..., :nope], queries[..., nope:], nope, prefix, 0.1)
    for start, stop in ((0, 64), (64, length)):
        attention.add(k_nope[start:stop], k_rope[start:stop], values[:, start:stop].contiguous())
    keys = torch.cat((k_nope, k_rope[:, None].expand(-1, sizes.heads, -1)), -1)
    scores = torch.einsum("qhd,khd->hqk", queries.float(), keys.float()) * 0.1
    seen = torch.arange(length, device=device) <= prefix + torch.arange(n, device=device)[:, None]
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    expected = torch.einsum("hqk,hkd->qhd", weights, values.float())
    bench.check("mla prefill", _error(attention.result(), expected), LIMITS[sizes.dtype])


def _error(got: Tensor, expected: Tensor) -> float:
    return float((got.double() - expected.double()).norm() / expected.double().norm())
