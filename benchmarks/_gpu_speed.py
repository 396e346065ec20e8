"""What the GPU's kernels take at DeepSeek-V3's sizes, against that GPU's own measured ceilings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle

import torch
import triton
from _gpu_inputs import random_layer, random_matrix, random_tokens
from _report import Report
from trimaran.gguf import GGMLType
from trimaran_kernels.gpu.layouts import LAYOUTS
from trimaran_kernels.gpu.linear import quant_linear, quant_swiglu
from trimaran_kernels.gpu.mla_decode import decode_attention

HIDDEN, WIDTH, HEADS, LATENT, ROPE = 7168, 2048, 128, 512, 64
ROTATED_BYTES = 1 << 30
"""Inputs are rotated among copies of this size in all, so that none is found in a cache."""


@dataclass(frozen=True)
class Ceilings:
    """Bytes a second of a copy, read and written, and operations a second of a bf16 product."""

    copy: float
    product: float


def measure_ceilings(device: torch.device) -> Ceilings:
    """The two numbers that everything else is held against."""
    return Ceilings(_copy_rate(device), _product_rate(device))


def _copy_rate(device: torch.device) -> float:
    source = torch.randn(1 << 29, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _seconds(lambda: target.copy_(source))


def _product_rate(device: torch.device) -> float:
    a, b = (random_tokens(8192, 8192, device, torch.bfloat16) for _ in range(2))
    return 2 * 8192**3 / _seconds(lambda: a @ b)


class Speeds:
    """Measures cases and reports them.

    Args:
        report: takes the rows.
        ceilings: of the same GPU.
        device: the GPU.
    """

    def __init__(self, report: Report, ceilings: Ceilings, device: torch.device) -> None:
        self._report = report
        self._ceilings = ceilings
        self._device = device

    def linear(self, type_: GGMLType, shape: tuple[int, int], batches: tuple[int, ...]) -> None:
        """One matrix [out, in], with batches of several sizes."""
        first = random_matrix(type_, *shape, self._device)
        copies = max(1, min(64, ROTATED_BYTES // first.nbytes))
        turn = cycle([first, *(random_matrix(type_, *shape, self._device) for _ in range(copies - 1))])
        for n in batches:
            x = random_tokens(n, shape[1], self._device, torch.bfloat16)
            seconds = _seconds(lambda x=x: quant_linear(x, next(turn)))
            name = f"linear {type_.name} {shape[0]}x{shape[1]}, {n} tokens"
            self._row(name, seconds, first.nbytes, 2 * n * shape[0] * shape[1])

    def swiglu(self) -> None:
        """A shared expert's first half, one token."""
        turn = cycle([random_matrix(GGMLType.Q4_K, WIDTH, HIDDEN, self._device) for _ in range(64)])
        x = random_tokens(1, HIDDEN, self._device, torch.bfloat16)
        seconds = _seconds(lambda: quant_swiglu(x, next(turn), next(turn)))
        self._row("swiglu Q4_K, 1 token", seconds, 2 * next(turn).nbytes, 4 * WIDTH * HIDDEN)

    def decode(self, kind: str, batch: int, context: int) -> None:
        """Attention of one token for each request, all of one length."""
        pages, device = context // 64, self._device
        layer, entry = random_layer(kind, batch * pages, LATENT, ROPE, device)
        tables = torch.arange(batch * pages, dtype=torch.int32, device=device).view(batch, pages)
        requests = torch.arange(batch, dtype=torch.int32, device=device)
        lengths = torch.full((batch,), context, dtype=torch.int32, device=device)
        queries = random_tokens(batch * HEADS, LATENT + ROPE, device, torch.bfloat16).view(batch, HEADS, -1)
        arguments = (queries, layer, entry, tables, requests, lengths)
        seconds = _seconds(lambda: decode_attention(*arguments, longest=context, scale=0.1))
        nbytes = batch * context * entry.code_stride * (1 if entry.form else 2)
        operations = 2 * batch * context * HEADS * (2 * LATENT + ROPE)
        self._row(f"mla decode {kind}, {batch} x {context}", seconds, nbytes, operations)

    def _row(self, case: str, seconds: float, nbytes: int, operations: int) -> None:
        """Against the larger of two times: the bytes' and the operations'."""
        floor = max(nbytes / self._ceilings.copy, operations / self._ceilings.product)
        self._report.row(case, seconds * 1e6, "us", floor=floor * 1e6)


def add_rows(report: Report, ceilings: Ceilings, device: torch.device) -> None:
    """Measure everything."""
    report.row("copy", ceilings.copy / 1e9, "GB/s")
    report.row("bf16 product", ceilings.product / 1e12, "TFLOP/s")
    speeds = Speeds(report, ceilings, device)
    for type_ in LAYOUTS:
        speeds.linear(type_, (HIDDEN, 16384), (1,))
    for shape in ((24576, 1536), (WIDTH, HIDDEN), (576, HIDDEN)):
        speeds.linear(GGMLType.Q4_K, shape, (1,))
    speeds.linear(GGMLType.Q4_K, (HIDDEN, 16384), (4, 16, 64, 256, 512, 2048))
    speeds.swiglu()
    for kind in ("bf16", "fp8"):
        for batch, context in ((1, 1024), (1, 32768), (8, 32768), (1, 131072)):
            speeds.decode(kind, batch, context)


def _seconds(call: Callable[[], object]) -> float:
    """Median of many runs, by the device's own clock."""
    milliseconds = triton.testing.do_bench(call, warmup=20, rep=100, return_mode="median")
    return float(milliseconds) / 1e3
