"""Routed experts on the CPU: milliseconds and GB/s of one layer call, by weight type and token count.

    python benchmarks/experts.py --hidden 7168 --intermediate 2048 --experts 8

Every token chooses all of the layer's experts: a call needs each weight once, whatever the token count. The
floor of a call is the time to read these bytes at the measured bandwidth; few tokens should come near it,
many tokens are bound by arithmetic. The peer is the same call on the portable reference.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from _report import Report
from numpy.typing import NDArray
from trimaran_kernels import ExpertEngine, ThreadPool, explain_isa, read_memory, supported_types, usable_cpus

LAYER = 0
PROBE_BYTES = 256 << 20  # larger than any cache


def main() -> None:
    """Measure and report."""
    options = parse_options()
    pool = ThreadPool(usable_cpus(options.threads))
    bandwidth = measure_bandwidth(pool)
    report = Report(
        "experts",
        threads=pool.size,
        isa=explain_isa(),
        hidden=options.hidden,
        intermediate=options.intermediate,
        experts=options.experts,
    )
    report.row("memory read", bandwidth / 1e9, "GB/s")
    kinds = {name: (type_id, block, size) for type_id, name, block, size in supported_types()}
    for name in options.types:
        type_id, block_size, type_size = kinds[name]
        n_weights = 3 * options.experts * options.hidden * options.intermediate
        n_bytes = n_weights // block_size * type_size
        raw = make_weights(n_bytes // 3)
        for n_tokens in options.tokens:
            seconds = {
                isa: time_call(make_call(pool, options, (type_id, raw), n_tokens, isa), options.repeat)
                for isa in ("auto", *(["generic"] if options.compare else []))
            }
            case = f"{name} tokens={n_tokens}"
            reference = seconds.get("generic")
            report.row(
                f"{case} time",
                seconds["auto"] * 1e3,
                "ms",
                peer="generic" if reference else None,
                peer_value=reference * 1e3 if reference else None,
                floor=n_bytes / bandwidth * 1e3,
            )
            report.row(
                f"{case} weights read",
                n_bytes / seconds["auto"] / 1e9,
                "GB/s",
                floor=bandwidth / 1e9,
                higher_is_better=True,
            )
            report.row(f"{case} arithmetic", 2 * n_weights * n_tokens / seconds["auto"] / 1e9, "GFLOP/s")
    report.write(options.json)


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hidden", type=int, default=7168)
    parser.add_argument("--intermediate", type=int, default=2048)
    parser.add_argument("--experts", type=int, default=8, help="experts of the layer; each token uses all")
    parser.add_argument("--types", nargs="+", default=["Q4_K", "Q6_K", "Q8_0", "IQ2_XXS"])
    parser.add_argument("--tokens", nargs="+", type=int, default=[1, 4, 16, 64])
    parser.add_argument(
        "--threads", type=int, help="compute threads; default: the cores this process may use"
    )
    parser.add_argument("--repeat", type=int, default=5, help="calls, of which the median counts")
    parser.add_argument("--compare", action="store_true", help="time the portable reference too (slow)")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    return parser.parse_args()


def make_weights(n_bytes: int) -> NDArray[np.uint8]:
    """Blocks that every type decodes as fast as any others; written, so that they have pages of their own."""
    raw = np.empty(n_bytes, np.uint8)
    raw.fill(1)
    return raw


def make_call(
    pool: ThreadPool, options: argparse.Namespace, weights: tuple[int, NDArray[np.uint8]], n: int, isa: str
) -> Callable[[], None]:
    """A function that runs one layer call of n tokens, each choosing every expert."""
    experts = options.experts
    engine = ExpertEngine(pool, options.hidden, options.intermediate, experts, experts, isa=isa)
    gate, up, down = (weights, (weights[0], weights[1].copy()), (weights[0], weights[1].copy()))
    engine.add_layer(LAYER, gate, up, down, 0, experts)
    x = np.random.default_rng(0).standard_normal((n, options.hidden), dtype=np.float32)
    ids = np.tile(np.arange(experts, dtype=np.int32), (n, 1))
    shares = np.full((n, experts), 1 / experts, np.float32)
    y = np.empty_like(x)

    def call() -> None:
        status = engine.forward(LAYER, x, ids, shares, y)
        assert status == 0, f"status {status}"

    return call


def measure_bandwidth(pool: ThreadPool) -> float:
    """Bytes per second that all threads read together."""
    raw = make_weights(PROBE_BYTES)
    return PROBE_BYTES / time_call(lambda: read_memory(pool, raw), 9)


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
