"""Latent attention on the CPU: milliseconds of one layer, GFLOP/s and GB/s, beside the torch reference.

    python benchmarks/mla.py
    python benchmarks/mla.py --models DeepSeek-V3 --contexts 1024 131072 --no-reference

A decode case computes one token of each of several requests of one length; a prefill case a whole chunk, from
position 0 and behind a prefix. Its floor is the larger of two times: to read the latents and the maps once at
the measured bandwidth, and to do the multiplications of the cheaper form at the rate of torch's float32
matrix product, 2048 cubed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from _report import Report
from numpy.typing import NDArray
from trimaran.kv_format import KvFormat, choose_format, entry_bytes
from trimaran.synth import REAL_SPECS
from trimaran_attn import kv_codes
from trimaran_attn.kv_cache import PAGE_SIZE
from trimaran_attn.model import mla
from trimaran_attn.model.mla import absorbs
from trimaran_attn.model.native_attention import make_native
from trimaran_attn.model.rope import rotate
from trimaran_kernels import LatentMaps, LatentPages, ThreadPool, explain_isa, read_memory, usable_cpus

PROBE_BYTES = 256 << 20  # larger than any cache


@dataclass(frozen=True)
class Work:
    """`n` new tokens of each of `batch` requests, behind `prefix` others."""

    batch: int
    n: int
    prefix: int

    @property
    def name(self) -> str:
        """For the report."""
        if self.n == 1:
            return f"decode {self.prefix + 1} × {self.batch}"
        return f"prefill {self.n} behind {self.prefix}"


class Bench:
    """One layer of a model: random maps, and one pool of random pages that all cases share."""

    def __init__(self, name: str, kind: KvFormat, pool: ThreadPool, tokens: int) -> None:
        spec = REAL_SPECS[name]
        self.name, self.spec, self.kind, self._native = name, spec, kind, make_native(spec, pool)
        heads, latent = spec.n_heads, spec.kv_lora_rank
        k_b = torch.randn(heads, spec.qk_nope_head_dim, latent) / latent**0.5
        self._maps = mla.LatentMaps(k_b, torch.randn(heads, latent, spec.v_head_dim) / latent**0.5)
        self._packed = LatentMaps(self._maps.k_b.numpy(), self._maps.v_b.numpy(), True)
        n_pages = -(-tokens // PAGE_SIZE)
        some = kv_codes.encode(torch.randn(PAGE_SIZE, latent + spec.qk_rope_head_dim), spec, kind)
        self._raw = some.repeat(n_pages, 1)
        dims = (latent, spec.qk_rope_head_dim, PAGE_SIZE)
        self._pages = LatentPages(self._raw.flatten().numpy(), kind, *dims)
        self._scattered = np.random.default_rng(0).permutation(n_pages).astype(np.int32)

    def native(self, work: Work) -> Callable[[], None]:
        """One call of the kernels, in the form that is cheaper by count."""
        rows, table = self._tables(work)
        q, cos, sin = self._queries(work)
        out = torch.empty(len(q), self.spec.n_heads * self.spec.v_head_dim).numpy()
        arrays = (q.numpy(), cos.numpy(), sin.numpy())
        return lambda: self._native.kernels.attend(self._packed, *arrays, self._pages, rows, table, out)

    def reference(self, work: Work) -> Callable[[], None]:
        """The same in torch, from a gathered copy, as `LatentAttention` does it."""
        spec = self.spec
        q, cos, sin = self._queries(work)
        rows, table = self._tables(work)
        absorbed = bool(rows[0, 4])
        scale = float((spec.qk_nope_head_dim + spec.qk_rope_head_dim) ** -0.5)

        def call() -> None:
            heads = q.view(len(q), spec.n_heads, -1)
            nope, rope = torch.split(heads, [spec.qk_nope_head_dim, spec.qk_rope_head_dim], -1)
            rope = rotate(rope, cos, sin)
            queries = torch.cat((mla.absorb(nope, self._maps), rope), -1) if absorbed else None
            for first, n, position, page, _ in rows.tolist():
                mine, visible = slice(first, first + n), position + n
                pages = torch.from_numpy(table[page : page + -(-visible // PAGE_SIZE)])
                raw = self._raw.view(-1, PAGE_SIZE, self._raw.shape[1])[pages].flatten(0, 1)[:visible]
                entries = kv_codes.decode(raw, spec, self.kind).float()
                where = {"position": position, "scale": scale}
                if queries is not None:
                    mixed = mla.attend_latents(queries[mine], entries, spec.kv_lora_rank, **where)
                    mla.unabsorb(mixed, self._maps)
                else:
                    mla.attend_expanded((nope[mine], rope[mine]), entries, self._maps, **where)

        return call

    def cost(self, work: Work) -> tuple[float, float]:
        """Multiplications and bytes of one call: what cannot be avoided in the form that is taken."""
        spec = self.spec
        latent, rope, heads = spec.kv_lora_rank, spec.qk_rope_head_dim, spec.n_heads
        mapping = latent * (spec.qk_nope_head_dim + spec.v_head_dim)
        pairs = work.n * work.prefix + work.n * (work.n + 1) / 2
        if absorbs("auto", spec, work.n, work.prefix, self._native.cost):
            products = work.n * mapping + pairs * (2 * latent + rope)
        else:
            products = (work.prefix + work.n) * mapping + pairs * (
                spec.qk_nope_head_dim + rope + spec.v_head_dim
            )
        entries = work.batch * (work.prefix + work.n) * entry_bytes(spec, self.kind)
        return heads * products * work.batch, entries + self._packed.nbytes

    def _queries(self, work: Work) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        spec, n = self.spec, work.batch * work.n
        angles = torch.rand(n, spec.qk_rope_head_dim // 2)
        width = spec.n_heads * (spec.qk_nope_head_dim + spec.qk_rope_head_dim)
        return torch.randn(n, width), angles.cos(), angles.sin()

    def _tables(self, work: Work) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Segments and pages; requests share no page."""
        absorbed = int(absorbs("auto", self.spec, work.n, work.prefix, self._native.cost))
        each = -(-(work.prefix + work.n) // PAGE_SIZE)
        rows = [[i * work.n, work.n, work.prefix, i * each, absorbed] for i in range(work.batch)]
        return np.array(rows, np.int32), self._scattered[: work.batch * each].copy()


def main() -> None:
    """Measure and report."""
    options = parse_options()
    pool = ThreadPool(usable_cpus(options.threads))
    torch.set_num_threads(pool.size)
    bandwidth, rate = measure_bandwidth(pool), measure_products()
    kind = choose_format(options.kv, exact=False)
    report = Report("mla", threads=pool.size, isa=explain_isa(), kv=kind, torch=str(torch.__version__))
    report.row("memory read", bandwidth / 1e9, "GB/s")
    report.row("torch matmul 2048³", 2 * rate / 1e9, "GFLOP/s")
    works = cases(options)
    tokens = max(work.batch * (work.prefix + work.n + PAGE_SIZE) for work in works)
    for name in options.models:
        bench = Bench(name, kind, pool, tokens)
        for work in works:
            measure(report, bench, work, options, (bandwidth, rate))
    report.write(options.json)


def measure(
    report: Report, bench: Bench, work: Work, options: argparse.Namespace, ceilings: tuple[float, float]
) -> None:
    """Add the rows of one case."""
    bandwidth, rate = ceilings
    products, n_bytes = bench.cost(work)
    compare = options.reference and work.batch * work.n * (work.prefix + work.n) <= options.largest_reference
    native = time_call(bench.native(work), options.repeat)
    torch_s = time_call(bench.reference(work), options.repeat) if compare else None
    case = f"{bench.name} {work.name}"
    report.row(
        f"{case} time",
        native * 1e3,
        "ms",
        peer="torch" if compare else None,
        peer_value=torch_s * 1e3 if torch_s else None,
        floor=max(products / rate, n_bytes / bandwidth) * 1e3,
    )
    report.row(
        f"{case} arithmetic",
        2 * products / native / 1e9,
        "GFLOP/s",
        floor=2 * rate / 1e9,
        higher_is_better=True,
    )
    report.row(f"{case} read", n_bytes / native / 1e9, "GB/s", floor=bandwidth / 1e9, higher_is_better=True)


def cases(options: argparse.Namespace) -> list[Work]:
    """Decode at each context and batch that memory allows, prefill at each length and prefix."""
    works = []
    for context in options.contexts:
        works += [Work(batch, 1, context - 1) for batch in options.batches if batch * context <= 1 << 18]
    for n in options.prefill:
        works += [Work(1, n, prefix) for prefix in options.prefixes]
    return works


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--models", nargs="+", default=["DeepSeek-V2-Lite", "DeepSeek-V3"], choices=REAL_SPECS
    )
    parser.add_argument("--contexts", nargs="*", type=int, default=[1024, 8192, 32768, 131072])
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 8])
    parser.add_argument("--prefill", nargs="*", type=int, default=[512, 2048])
    parser.add_argument("--prefixes", nargs="*", type=int, default=[0, 2048])
    parser.add_argument("--kv", default="auto", choices=["auto", "f32", "bf16", "fp8", "int8"])
    parser.add_argument("--threads", type=int, help="default: the cores this process may use")
    parser.add_argument("--repeat", type=int, default=5, help="calls, of which the median counts")
    parser.add_argument("--reference", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument(
        "--largest-reference",
        type=int,
        default=1 << 21,
        help="most (query, key) pairs torch is timed on",
    )
    parser.add_argument("--json", type=Path, help="where to write the figures")
    return parser.parse_args()


def measure_bandwidth(pool: ThreadPool) -> float:
    """Bytes per second that all threads read together."""
    raw = np.ones(PROBE_BYTES, np.uint8)
    return PROBE_BYTES / time_call(lambda: read_memory(pool, raw), 9)


def measure_products() -> float:
    """Multiplications per second of torch's matrix product."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    return 2048**3 / time_call(lambda: a @ b, 3)


def time_call(call: Callable[[], object], repeat: int) -> float:
    """Median seconds of `repeat` calls after a first one that warms up."""
    call()
    seconds = []
    for _ in range(repeat):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
