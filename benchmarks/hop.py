"""The hop between the attention service and the expert service: microseconds of an empty call, by notifier.

    python benchmarks/hop.py --calls 2000

An empty call carries no token: what is left is the way there and back between two real processes, through
the whole client and the whole service. `doorbell, bare` leaves the client's Python out (ring, wait).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from _report import Report
from numpy.typing import NDArray
from trimaran.arena import Arena, ArenaDims, arena_directory
from trimaran.channel import Client
from trimaran.config import ExpertsConfig, Notifier
from trimaran.fingerprint import fingerprint
from trimaran.gguf import GGMLType, GGUFFile
from trimaran.run_dir import experts_endpoint, open_run_dir
from trimaran.spec import read_spec
from trimaran.synth import write_random_model
from trimaran.wire import PROTOCOL_VERSION, EngineToExperts, ExpertsToEngine, Hello, Ready
from trimaran_attn.experts_client import ExpertsClient, ModelFacts
from trimaran_kernels.hop import HopArena

NOTIFIERS: tuple[Notifier, ...] = ("doorbell", "zmq", "tcp")
LAYER = 1


def main() -> None:
    """Measure and report."""
    options = parse_options()
    report = Report("hop", calls=options.calls)
    with tempfile.TemporaryDirectory() as folder:
        model = write_model(Path(folder))
        facts = read_facts(model)
        with open_run_dir() as run_dir, experts(model, run_dir.path):
            add_rows(report, "doorbell, bare", time_bare(facts, run_dir.path, options.calls))
            for notifier in NOTIFIERS:
                add_rows(report, notifier, time_client(facts, run_dir.path, notifier, options.calls))
    report.write(options.json)


def write_model(folder: Path) -> Path:
    """A small model: an empty call does not touch its weights."""
    path = folder / "model.gguf"
    return write_random_model(path, mix=lambda _name, _shape: GGMLType.F32, tokenizer=False)


def read_facts(model: Path) -> ModelFacts:
    """What a client of this model says in its hello."""
    with GGUFFile.open(model) as file:
        spec = read_spec(file)
        return ModelFacts(
            fingerprint(file, spec),
            spec.hidden_size,
            spec.moe.top_k,
            spec.moe.n_experts,
            tuple(range(spec.n_dense_layers, spec.n_layers)),
        )


@contextmanager
def experts(model: Path, run_dir: Path) -> Iterator[None]:
    """An expert service in a process of its own."""
    settings = {"model": model, "run_dir": run_dir, "log_level": "warning"}
    arguments = [f"--set={name}={value}" for name, value in settings.items()]
    service = subprocess.Popen([sys.executable, "-m", "trimaran_experts", *arguments])
    try:
        yield
    finally:
        service.terminate()
        service.wait(20)


def time_client(facts: ModelFacts, run_dir: Path, notifier: Notifier, calls: int) -> NDArray[np.float64]:
    """Seconds of each submit and wait."""
    config = ExpertsConfig(notifier=notifier)
    x = np.zeros((0, facts.hidden_size), np.float32)
    ids = np.zeros((0, facts.top_k), np.int32)
    weights = np.ones((0, facts.top_k), np.float32)
    with ExpertsClient(config, facts, run_dir) as client:
        client.connect()
        return repeat(lambda: client.wait(client.submit(LAYER, x, ids, weights)), calls)


def time_bare(facts: ModelFacts, run_dir: Path, calls: int) -> NDArray[np.float64]:
    """Seconds of each ring and wait, without the client's bookkeeping."""
    dims = ArenaDims(facts.hidden_size, facts.top_k, 1, 1, "f32")
    with (
        Arena(dims, arena_directory(run_dir)) as arena,
        Client[ExpertsToEngine, EngineToExperts](experts_endpoint(run_dir), ExpertsToEngine) as control,
    ):
        attach(control, facts, arena)
        bell = HopArena(str(arena.path))
        sequence = iter(range(1, 1 << 32))

        def call() -> None:
            number = next(sequence)
            bell.ring(0, number, LAYER, 0)
            if bell.wait_done(0, number, 1.0) != 0:
                raise RuntimeError("the expert service did not answer")

        return repeat(call, calls)


def attach(control: Client[ExpertsToEngine, EngineToExperts], facts: ModelFacts, arena: Arena) -> None:
    """Say hello until the service is ready."""
    hello = Hello(
        protocol=PROTOCOL_VERSION,
        model_fingerprint=facts.fingerprint,
        hidden_size=facts.hidden_size,
        top_k=facts.top_k,
        n_experts=facts.n_experts,
        layers=facts.layers,
        dtype="f32",
        notifier="doorbell",
        arena=str(arena.path),
        client=f"benchmark {os.getpid()}",
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        control.send(hello)
        event = control.recv(0.2)
        if event is not None and isinstance(getattr(event, "message", None), Ready):
            return
    raise RuntimeError("the expert service did not start")


def repeat(call: Callable[[], object], calls: int) -> NDArray[np.float64]:
    """Seconds of each of `calls` calls, after a tenth as many to warm up."""
    for _ in range(calls // 10):
        call()
    seconds = np.empty(calls)
    for index in range(calls):
        start = time.perf_counter()
        call()
        seconds[index] = time.perf_counter() - start
    return seconds


def add_rows(report: Report, case: str, seconds: NDArray[np.float64]) -> None:
    """Median and 99th percentile in microseconds."""
    for name, quantile in (("p50", 50), ("p99", 99)):
        report.row(f"{case}, {name}", float(np.percentile(seconds, quantile)) * 1e6, "us")


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=3000, help="calls per notifier")
    parser.add_argument(
        "--json", type=Path, default=Path("build/bench/hop.json"), help="where the figures go"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
