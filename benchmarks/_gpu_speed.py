"""What the GPU's kernels take at DeepSeek-V3's sizes, against that GPU's own measured ceilings."""

from __future__ import annotations

from itertools import cycle

import torch
from _gpu_bench import Bench
from _gpu_inputs import random_layer, random_matrix, random_tokens
from trimaran.gguf import GGMLType
from trimaran_kernels.gpu.layouts import LAYOUTS
from trimaran_kernels.gpu.linear import quant_linear, quant_swiglu
from trimaran_kernels.gpu.mla_decode import decode_attention

HIDDEN, WIDTH, HEADS, LATENT, ROPE = 7168, 2048, 128, 512, 64
ROTATED_BYTES = 1 << 30
"""Inputs are rotated among copies of this size in all, so that none is found in a cache."""


def measure_ceilings(bench: Bench) -> None:
    """The two numbers that everything else is held against."""
    bench.row("copy", bench.ceilings.copy / 1e9, "GB/s")
    bench.row("bf16 product", bench.ceilings.product / 1e12, "TFLOP/s")


def measure_one_token(bench: Bench) -> None:
    """V3's shapes: the commonest type first, and a shared expert's first half."""
    for shape in ((HIDDEN, 16384), (24576, 1536), (WIDTH, HIDDEN), (576, HIDDEN)):
        time_linear(bench, GGMLType.Q4_K, shape, (1,))
    time_swiglu(bench)
    for type_ in LAYOUTS:
        if type_ is not GGMLType.Q4_K:
            time_linear(bench, type_, (HIDDEN, 16384), (1,))


def measure_tokens(bench: Bench) -> None:
    """Longer batches of the commonest type, the longest first."""
    time_linear(bench, GGMLType.Q4_K, (HIDDEN, 16384), (2048, 512, 256, 64, 16, 8, 4, 2))


def measure_decode_attention(bench: Bench) -> None:
    """One token for each of 1 to 8 requests, up to V3's longest context."""
    for kind in ("bf16", "fp8"):
        for batch, context in ((1, 32768), (8, 32768), (2, 32768), (4, 32768), (1, 1024), (1, 131072)):
            time_decode(bench, kind, batch, context)


def time_linear(bench: Bench, type_: GGMLType, shape: tuple[int, int], batches: tuple[int, ...]) -> None:
    """One matrix [out, in], with batches of several sizes."""
    first = random_matrix(type_, *shape, bench.device)
    copies = max(1, min(64, ROTATED_BYTES // first.nbytes))
    turn = cycle([first, *(random_matrix(type_, *shape, bench.device) for _ in range(copies - 1))])
    for n in batches:
        x = random_tokens(n, shape[1], bench.device, torch.bfloat16)
        path = "gemv" if n == 1 else "gemm"
        bench.time(
            f"{path} {type_.name} {shape[0]}x{shape[1]}, {n} tokens",
            lambda x=x: quant_linear(x, next(turn)),
            nbytes=first.nbytes,
            operations=2 * n * shape[0] * shape[1],
        )


def time_swiglu(bench: Bench) -> None:
    """A shared expert's first half, one token."""
    turn = cycle([random_matrix(GGMLType.Q4_K, WIDTH, HIDDEN, bench.device) for _ in range(64)])
    x = random_tokens(1, HIDDEN, bench.device, torch.bfloat16)
    bench.time(
        "gemv swiglu Q4_K, 1 token",
        lambda: quant_swiglu(x, next(turn), next(turn)),
        nbytes=2 * next(turn).nbytes,
        operations=4 * WIDTH * HIDDEN,
    )


def time_decode(bench: Bench, kind: str, batch: int, context: int) -> None:
    """Attention of one token for each request, all of one length."""
    pages, device = context // 64, bench.device
    layer, entry = random_layer(kind, batch * pages, LATENT, ROPE, device)
    nbytes = batch * context * entry.code_stride * (1 if entry.form else 2)
    copies = max(1, min(64, ROTATED_BYTES // nbytes))
    turn = cycle(
        [layer, *(random_layer(kind, batch * pages, LATENT, ROPE, device)[0] for _ in range(copies - 1))]
    )
    tables = torch.arange(batch * pages, dtype=torch.int32, device=device).view(batch, pages)
    requests = torch.arange(batch, dtype=torch.int32, device=device)
    lengths = torch.full((batch,), context, dtype=torch.int32, device=device)
    queries = random_tokens(batch * HEADS, LATENT + ROPE, device, torch.bfloat16).view(batch, HEADS, -1)
    rest = (entry, tables, requests, lengths)
    bench.time(
        f"mla decode {kind}, {batch} x {context}",
        lambda: decode_attention(queries, next(turn), *rest, longest=context, scale=0.1),
        nbytes=nbytes,
        operations=2 * batch * context * HEADS * (2 * LATENT + ROPE),
    )
