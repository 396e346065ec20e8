"""Routed experts on the CPU: one layer call by weight type and token count, beside kt-kernel.

    python benchmarks/experts.py
    python benchmarks/experts.py --peer-python ~/kt/bin/python --types Q4_K --tokens 1 8 64 512

Each token chooses `--top-k` of `--experts` experts at random. The floor of a call is the time to read the
chosen experts' bytes, as they are in the file, at the bandwidth that the same threads measure in the same
minute: few tokens should come near it, many are bound by arithmetic. Our calls, the peer's and the bandwidth
probe take turns; medians count. The peer, kt-kernel in a Python of its own, computes from the same bits.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from _peer import KtKernel, find_peer
from _report import Report
from numpy.typing import NDArray
from trimaran.gguf import GGMLType
from trimaran.synth.blocks import random_blocks
from trimaran_kernels import (
    ExpertEngine,
    ThreadPool,
    aligned_bytes,
    explain_isa,
    pack,
    packed_bytes,
    read_memory,
    usable_cpus,
)

LAYER = 0
PROBE_BYTES = 256 << 20  # larger than any cache
ENOUGH_SECONDS = 12.0  # of calls that take long
TYPES = ("Q4_K", "Q5_K", "Q6_K", "Q8_0", "Q3_K", "Q2_K", "IQ4_XS")
PEER_TYPES = ("Q4_K", "Q6_K", "Q8_0")


@dataclass(frozen=True)
class Case:
    """What one row of figures measures."""

    kind: GGMLType
    tokens: int
    hidden: int
    intermediate: int
    n_experts: int
    top_k: int

    def routes(self) -> NDArray[np.int32]:
        """Distinct random experts of each token, [tokens, top_k]."""
        rng = np.random.default_rng(self.tokens)
        table = np.tile(np.arange(self.n_experts, dtype=np.int32), (self.tokens, 1))
        return np.ascontiguousarray(rng.permuted(table, axis=1)[:, : self.top_k])

    @property
    def bytes_read(self) -> int:
        """Of the chosen experts, in the file."""
        wide = self.intermediate * self.kind.row_bytes(self.hidden)
        narrow = self.hidden * self.kind.row_bytes(self.intermediate)
        return len(np.unique(self.routes())) * (2 * wide + narrow)

    @property
    def operations(self) -> int:
        """Multiplications and additions."""
        return 6 * self.hidden * self.intermediate * self.tokens * self.top_k


def main() -> None:
    """Measure and report."""
    options = parse_options()
    pool = ThreadPool(usable_cpus(options.threads))
    peer = find_peer(options.peer_python, "kt_kernel")
    report = Report(
        "experts",
        threads=pool.size,
        isa=explain_isa(),
        precision=options.precision,
        **{name: getattr(options, name) for name in ("hidden", "intermediate", "experts", "top_k")},
    )
    for name in options.types:
        measure_type(report, pool, options, GGMLType[name], peer)
    report.write(options.json)


def measure_type(
    report: Report, pool: ThreadPool, options: argparse.Namespace, kind: GGMLType, peer: str | None
) -> None:
    """All token counts of one type."""
    shapes = {"gate": (options.intermediate, options.hidden), "down": (options.hidden, options.intermediate)}
    raw = {name: random_blocks(kind, shape, shape[1] ** -0.5, 1) for name, shape in shapes.items()}
    engine = make_engine(pool, options, kind, {"gate": raw["gate"], "up": raw["gate"], "down": raw["down"]})
    probe = np.ones(PROBE_BYTES, np.uint8)
    with ExitStack() as stack:
        rival = None
        if peer is not None and kind.name in options.peer_types:
            rival = stack.enter_context(start_peer(stack, peer, options, kind, raw))
        for tokens in options.tokens:
            case = Case(kind, tokens, options.hidden, options.intermediate, options.experts, options.top_k)
            calls = {"ours": make_call(engine, case), "read": timed(lambda: read_memory(pool, probe))}
            if rival is not None:
                ids = case.routes().tolist()
                calls["peer"] = lambda ids=ids: rival.run(ids)
            add_rows(report, case, take_turns(calls, options.repeat))


def add_rows(report: Report, case: Case, seconds: dict[str, float]) -> None:
    """A case's figures."""
    name, bandwidth = f"{case.kind.name} tokens={case.tokens}", PROBE_BYTES / seconds["read"]
    peer = seconds.get("peer")
    report.row(
        name,
        seconds["ours"] * 1e3,
        "ms",
        peer=None if peer is None else "kt-kernel, same bits",
        peer_value=None if peer is None else peer * 1e3,
        floor=case.bytes_read / bandwidth * 1e3,
    )
    rate = case.bytes_read / seconds["ours"] / 1e9
    report.row(f"{name} read", rate, "GB/s", floor=bandwidth / 1e9, higher_is_better=True)
    report.row(f"{name} arithmetic", case.operations / seconds["ours"] / 1e9, "GFLOP/s")


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hidden", type=int, default=7168)
    parser.add_argument("--intermediate", type=int, default=2048)
    parser.add_argument("--experts", type=int, default=32, help="experts in memory")
    parser.add_argument("--top-k", type=int, default=8)
    parser.add_argument(
        "--types", nargs="+", default=["Q4_K", "Q5_K", "Q6_K", "Q8_0", "Q3_K", "Q2_K", "IQ4_XS"]
    )
    parser.add_argument("--tokens", nargs="+", type=int, default=[1, 8, 64, 512])
    parser.add_argument("--precision", choices=["int8", "exact"], default="int8")
    parser.add_argument(
        "--threads", type=int, help="compute threads; default: the cores this process may use"
    )
    parser.add_argument("--repeat", type=int, default=7, help="calls, of which the median counts")
    parser.add_argument(
        "--peer-python",
        default=os.environ.get("TRIMARAN_PEER_PYTHON"),
        help="a Python with kt-kernel, to be measured beside us",
    )
    parser.add_argument("--peer-types", nargs="*", default=PEER_TYPES, help="types for the peer too")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    return parser.parse_args()


def make_engine(
    pool: ThreadPool,
    options: argparse.Namespace,
    kind: GGMLType,
    raw: dict[str, NDArray[np.uint8]],
    layers: Iterable[int] = (LAYER,),
) -> ExpertEngine:
    """Layers of the same memory, whose experts are all alike, each with memory of its own."""
    engine = ExpertEngine(pool, options.hidden, options.intermediate, options.experts, options.top_k)
    shapes = {"down": (options.hidden, options.intermediate)}
    matrices = []
    for name, data in raw.items():
        rows, columns = shapes.get(name, (options.intermediate, options.hidden))
        size = packed_bytes(int(kind), rows, columns) if options.precision == "int8" else None
        expert = data.reshape(-1)
        if size is not None:
            expert = aligned_bytes(size)
            pack(pool, int(kind), data.reshape(-1), rows, columns, expert)
        whole = aligned_bytes(options.experts * expert.size)
        whole.reshape(options.experts, -1)[:] = expert
        matrices.append((int(kind), whole, size is not None))
    for layer in layers:
        engine.add_layer(layer, *matrices, 0, options.experts)
    return engine


def make_call(engine: ExpertEngine, case: Case) -> Callable[[], float]:
    """A function that runs one layer call and tells its seconds."""
    x = np.random.default_rng(0).standard_normal((case.tokens, case.hidden), dtype=np.float32)
    ids, y = case.routes(), np.empty_like(x)
    shares = np.full(ids.shape, 1 / case.top_k, np.float32)

    def call() -> None:
        status = engine.forward(LAYER, x, ids, shares, y)
        assert status == 0, f"status {status}"

    return timed(call)


def start_peer(
    stack: ExitStack,
    python: str,
    options: argparse.Namespace,
    kind: GGMLType,
    raw: dict[str, NDArray[np.uint8]],
) -> KtKernel:
    """kt-kernel with the same experts."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="trimaran-bench-")))
    paths = []
    for name in ("gate", "gate", "down"):
        path = folder / name
        if not path.exists():
            with path.open("wb") as file:
                for _ in range(options.experts):
                    raw[name].tofile(file)
        paths.append(str(path))
    return KtKernel(
        python,
        "_kt_kernel_peer.py",
        *paths,
        type=int(kind),
        hidden=options.hidden,
        intermediate=options.intermediate,
        experts=options.experts,
        top_k=options.top_k,
        threads=len(usable_cpus(options.threads)),
    )


def timed(call: Callable[[], object]) -> Callable[[], float]:
    """The call, telling its seconds."""

    def run() -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    return run


def take_turns(calls: dict[str, Callable[[], float]], repeat: int) -> dict[str, float]:
    """Median seconds of each, one after another after a round that warms up.

    `repeat` rounds, or as many as fit into `ENOUGH_SECONDS`, but at least three.
    """
    one_round(calls)
    rounds: list[dict[str, float]] = []
    while len(rounds) < repeat:
        rounds.append(one_round(calls))
        if len(rounds) >= 3 and sum(sum(one.values()) for one in rounds) > ENOUGH_SECONDS:
            break
    return {name: statistics.median(one[name] for one in rounds) for name in calls}


def one_round(calls: dict[str, Callable[[], float]]) -> dict[str, float]:
    """Seconds of each."""
    return {name: call() for name, call in calls.items()}


if __name__ == "__main__":
    main()
