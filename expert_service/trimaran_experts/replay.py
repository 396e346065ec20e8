"""`trimaran experts replay`: recorded calls against the kernels, without any attention service."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from trimaran.config import Config
from trimaran.errors import KernelError, PeerMismatchError
from trimaran.fingerprint import explain_mismatch
from trimaran.gguf import GGUFFile
from trimaran.model_path import resolve_model
from trimaran.spec import read_spec
from trimaran.wire import Status
from trimaran_kernels.hop import CallGate

from trimaran_experts.recording import RecordedCall, Recording, RecordingHeader
from trimaran_experts.shard import open_shard

TOLERANCE = 2e-2
"""Length of the difference of a token's two answers, relative to the recorded one's: other kernels round
otherwise, a wrong one is off by far more."""


@dataclass
class LayerTimes:
    """What replay saw of one layer."""

    seconds: list[float] = field(default_factory=list)
    tokens: int = 0
    deviation: float = 0.0


def replay(config: Config, path: Path) -> None:
    """Run every call of the recording and print, by layer, how long it took and how far answers are off.

    Raises:
        ModelFileError: the recording or the model cannot be read. PeerMismatchError: it is of another model.
        KernelError: an answer is not the recorded one.
    """
    with closing(Recording(path)) as recording, GGUFFile.open(resolve_model(config.model)) as file:
        shard = open_shard(config.experts, config.precision, file, read_spec(file))
        _check_model(recording.header, path, shard.facts.fingerprint)
        engine = shard.load(lambda _report: None, lambda: False)
        assert engine is not None
        layers = run(recording, engine.gate)
    _print(layers)
    worst = max((times.deviation for times in layers.values()), default=0.0)
    if worst > TOLERANCE:
        raise KernelError(
            f"{path}: answers deviate from the recorded ones by {worst:.2g}",
            remedy="compare with --set precision=exact and --set experts.isa=generic",
        )


def run(calls: Iterable[RecordedCall], gate: CallGate) -> dict[int, LayerTimes]:
    """Run the calls, one after another; by layer, what was seen.

    Raises:
        KernelError: a call has another status than the recorded one.
    """
    layers: dict[int, LayerTimes] = {}
    for number, call in enumerate(calls):
        y = np.zeros_like(call.x)
        start = time.perf_counter()
        status = gate.run(call.layer, call.x, call.ids, call.weights, y)
        seconds = time.perf_counter() - start
        if status != call.status:
            raise KernelError(
                f"call {number}, layer {call.layer}: status {status}, but {call.status} was recorded"
            )
        times = layers.setdefault(call.layer, LayerTimes())
        times.seconds.append(seconds)
        times.tokens += len(call.x)
        if status == Status.OK and call.y is not None:
            times.deviation = max(times.deviation, deviation(y, call.y))
    return layers


def deviation(y: NDArray[np.generic], recorded: NDArray[np.generic]) -> float:
    """The largest, over the tokens, of the relative lengths of the difference."""
    ours, theirs = _floats(y), _floats(recorded)
    if not len(ours):
        return 0.0
    difference = np.linalg.norm(ours - theirs, axis=1)
    return float((difference / np.maximum(np.linalg.norm(theirs, axis=1), 1e-30)).max())


def _floats(vectors: NDArray[np.generic]) -> NDArray[np.float64]:
    if vectors.dtype == np.uint16:
        return (vectors.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return vectors.astype(np.float64)


def _check_model(header: RecordingHeader, path: Path, ours: str) -> None:
    if header.fingerprint != ours:
        raise PeerMismatchError(
            f"{path}: was recorded with another model: {explain_mismatch(ours, header.fingerprint)}",
            remedy="name the model that it was recorded with by --model",
        )


def _print(layers: dict[int, LayerTimes]) -> None:
    sys.stdout.write("layer  calls  tokens    p50 ms    p99 ms  tokens/s  deviation\n")
    for layer, times in sorted(layers.items()):
        _print_row(f"{layer:5}", times)
    whole = LayerTimes(
        [second for times in layers.values() for second in times.seconds],
        sum(times.tokens for times in layers.values()),
        max((times.deviation for times in layers.values()), default=0.0),
    )
    if whole.seconds:
        _print_row("  all", whole)


def _print_row(name: str, times: LayerTimes) -> None:
    p50, p99 = np.percentile(times.seconds, (50, 99)) * 1e3
    rate = times.tokens / max(sum(times.seconds), 1e-9)
    sys.stdout.write(
        f"{name}  {len(times.seconds):5}  {times.tokens:6}  {p50:8.3f}  {p99:8.3f}  {rate:8.1f}"
        f"  {times.deviation:9.2g}\n"
    )
