"""Two clients of one expert engine at once: microseconds of a layer, with and without waiting for company.

    python benchmarks/merging.py --tokens 1 16 64

Each client goes through the layers again and again, with some work of its own between them, as attention
services do whose requests decode at the same time. The gate with its window and the one without take turns;
medians count. Clients, workers and engine are native and in one process, so that nothing else is measured.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from _report import Report
from experts import make_engine
from numpy.typing import NDArray
from trimaran.arena import Arena, ArenaDims, arena_directory
from trimaran.gguf import GGMLType
from trimaran.synth.blocks import random_blocks
from trimaran_kernels import ExpertEngine, ThreadPool, usable_cpus
from trimaran_kernels.hop import ArenaWorker, CallGate, HopArena, HopCall, HopLine

LAYERS = 26
Counters = dict[str, int]


def main() -> None:
    """Measure and report."""
    options = parse_options()
    engine = build(options)
    report = Report("merging", **{name: getattr(options, name) for name in ("hidden", "experts", "top_k")})
    for tokens in options.tokens:
        for clients in (1, 2):
            times: dict[bool, list[float]] = {False: [], True: []}
            counters: Counters = {}
            for _ in range(options.repeat):
                for gathers, taken in times.items():
                    seconds, counted = run(engine, options, tokens, clients, gathers)
                    taken.append(seconds * 1e6)
                    counters = counted if gathers else counters
            add_row(report, f"{clients} x {tokens} tokens", times, counters)
    report.write(options.json)


def build(options: argparse.Namespace) -> ExpertEngine:
    """All layers from the same bits: more of them than any cache holds."""
    shapes = {"gate": (options.intermediate, options.hidden), "down": (options.hidden, options.intermediate)}
    raw = {name: random_blocks(GGMLType.Q4_K, shape, shape[1] ** -0.5, 1) for name, shape in shapes.items()}
    weights = {"gate": raw["gate"], "up": raw["gate"], "down": raw["down"]}
    pool = ThreadPool(usable_cpus(None))
    return make_engine(pool, options, GGMLType.Q4_K, weights, layers=range(LAYERS))


def run(
    engine: ExpertEngine, options: argparse.Namespace, tokens: int, clients: int, gathers: bool
) -> tuple[float, Counters]:
    """Seconds of a layer in the mean, and what the gate counted."""
    gate = CallGate(engine, gathers)
    with ExitStack() as stack:
        people = [Person(stack, gate, options, tokens, seed) for seed in range(clients)]
        threads = [threading.Thread(target=person.work, args=(options.steps,)) for person in people]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - start
    return seconds / (options.steps * LAYERS), gate.counters()


class Person:
    """A client with an arena and a worker."""

    def __init__(
        self, stack: ExitStack, gate: CallGate, options: argparse.Namespace, tokens: int, seed: int
    ) -> None:
        dims = ArenaDims(options.hidden, options.top_k, tokens, 1, "f32")
        directory = arena_directory(tempfile.gettempdir())
        memory = HopArena(str(stack.enter_context(Arena(dims, directory)).path))
        stack.callback(ArenaWorker(memory, gate, -1).stop)
        self._line = HopLine(memory)
        self._pause = options.pause * 1e-6
        rng = np.random.default_rng(seed)
        self._x = rng.standard_normal((tokens, options.hidden)).astype(np.float32)
        self._ids: list[NDArray[np.int32]] = []
        for _ in range(LAYERS):
            order = rng.permuted(np.tile(np.arange(options.experts, dtype=np.int32), (tokens, 1)), axis=1)
            self._ids.append(np.ascontiguousarray(order[:, : options.top_k]))
        self._weights = np.ones((tokens, options.top_k), np.float32)
        self._y = np.empty_like(self._x)

    def work(self, steps: int) -> None:
        """Steps of all layers."""
        for layer in list(range(LAYERS)) * steps:
            call = HopCall.start([self._line], layer, self._x, self._ids[layer], self._weights)
            if call is None or call.collect(60, self._y) != 0:
                raise RuntimeError("the engine did not answer")
            if self._pause:
                time.sleep(self._pause)


def add_row(report: Report, case: str, times: dict[bool, list[float]], counters: Counters) -> None:
    """A layer's time, beside that without the window, and how often it merged and waited."""
    plain, gathered = (statistics.median(times[gathers]) for gathers in (False, True))
    report.row(f"{case}, a layer", gathered, "us", peer="no window", peer_value=plain)
    calls = max(1, counters["engine_calls"])
    report.row(f"{case}, of calls merged", 100 * counters["merged_calls"] / max(1, counters["calls"]), "%")
    report.row(f"{case}, wait of an engine call", counters["gather_ns"] / calls / 1e3, "us")


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--intermediate", type=int, default=1536)
    parser.add_argument("--experts", type=int, default=64)
    parser.add_argument("--top-k", type=int, default=6)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 8, 32], help="of a call")
    parser.add_argument("--pause", type=float, default=0, help="microseconds between a client's layers")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", type=Path, default=Path("build/bench/merging.json"))
    parser.set_defaults(precision="int8")
    return parser.parse_args()


if __name__ == "__main__":
    main()
