"""Calls recorded from a running service and replayed without it; recordings that are not whole."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trimaran.config import ExpertsConfig
from trimaran.errors import ModelFileError
from trimaran.wire import Record, Recorded
from trimaran_attn.experts_client import ExpertsClient
from trimaran_experts.recording import Recording
from trimaran_experts.replay import deviation
from trimaran_experts.tap import FORGOTTEN_S, Tap

MakeClient = Callable[..., ExpertsClient]


def trimaran(*arguments: str, timeout_s: float = 90) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from trimaran.cli.main import main; main()", "experts", *arguments]
    return subprocess.run(
        command, env=dict(os.environ), capture_output=True, text=True, timeout=timeout_s, check=False
    )


@pytest.fixture(scope="module")
def recording(model, shared_dir: Path, make_module_client, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Calls of both layers and both element types, and one that was refused."""
    path = tmp_path_factory.mktemp("recording") / "calls.rec"
    clients = [make_module_client(at=shared_dir, dtype=dtype) for dtype in ("f32", "bf16")]
    stopped = threading.Event()

    def call() -> None:
        seed = 0
        while not stopped.is_set():
            for client in clients:
                seed += 1
                client.wait(client.submit(1 + seed % 2, *model.batch(1 + seed % 3, seed)))

    caller = threading.Thread(target=call)
    caller.start()
    try:
        result = trimaran("record", str(path), "--seconds=1", "--limit=300K", f"--set=run_dir={shared_dir}")
    finally:
        stopped.set()
        caller.join()
    assert result.returncode == 0, result.stderr
    assert "calls, " in result.stdout
    return path


@pytest.fixture(scope="module")
def make_module_client(model):
    with ExitStack() as stack:

        def make(*, at: Path, dtype: str) -> ExpertsClient:
            config = ExpertsConfig(dtype=dtype, connect_timeout_s=20.0)
            client = stack.enter_context(ExpertsClient(config, model.facts, at, max_tokens=8))
            client.connect()
            return client

        yield make


def test_what_was_recorded_is_what_was_asked_and_answered(model, recording: Path) -> None:
    assert recording.stat().st_mode & 0o777 == 0o600
    assert recording.stat().st_size <= 300 << 10
    with closing(Recording(recording)) as opened:
        assert opened.header.fingerprint == model.facts.fingerprint
        calls = list(opened)
    assert len(calls) > 4
    assert {call.layer for call in calls} == {1, 2}
    assert {call.x.dtype.name for call in calls} == {"float32", "uint16"}
    for call in calls[:4]:
        if call.x.dtype == np.float32:
            expected = model.expected(call.layer, call.x, call.ids, call.weights)
            assert deviation(call.y, expected) < 1e-3


def test_replay_gives_the_same_answers(model, recording: Path) -> None:
    result = trimaran("replay", str(recording), "--model", str(model.path), "--set=precision=exact")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["layer", "calls", "tokens", "p50", "ms", "p99", "ms", "tokens/s", "deviation"]
    assert [line.split()[0] for line in lines[1:]] == ["1", "2", "all"]


def test_replay_with_another_model_or_answer_fails(
    model, other_model, recording: Path, tmp_path: Path
) -> None:
    result = trimaran("replay", str(recording), "--model", str(other_model.path))
    assert result.returncode == 6
    assert "another model: other expert weights" in result.stderr
    forged = tmp_path / "forged"
    data = np.fromfile(recording, np.uint8)
    with closing(Recording(recording)) as opened:
        first = next(iter(opened))
    assert first.y is not None
    start = 128 + 32 + first.x.nbytes + first.ids.nbytes + first.weights.nbytes
    data[start : start + first.y.nbytes] = 0x11
    data.tofile(forged)
    result = trimaran("replay", str(forged), "--model", str(model.path), "--set=precision=exact")
    assert result.returncode == 1
    assert "deviate from the recorded ones" in result.stderr
    assert result.stderr.count("error:") == 1


@pytest.mark.parametrize(
    ("harm", "complaint"),
    [
        (lambda data: data[:50], "is no recording"),
        (lambda data: b"GGUF" + data[4:], "is no recording"),
        (lambda data: data[:8] + b"\x63" + data[9:], "version 99"),
        (lambda data: data[:12] + b"\0\0\0\0" + data[16:], "impossible dimensions 0"),
        (lambda data: data[:140], "ends within a call"),
        (lambda data: data[:-3], "ends within a call"),
        (lambda data: data[:128] + b"JUNK" + data[132:], "damaged at byte 128"),
        (lambda data: data + b"x" * 40, "no call begins there"),
    ],
)
def test_damaged_recordings_are_one_line(
    recording: Path, tmp_path: Path, harm: Callable[[bytes], bytes], complaint: str
) -> None:
    path = tmp_path / "harmed"
    path.write_bytes(harm(recording.read_bytes()))
    with pytest.raises(ModelFileError, match=complaint), closing(Recording(path)) as opened:
        list(opened)


def test_what_cannot_be_recorded_is_one_line(shared_dir: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.touch()
    result = trimaran("record", str(there), f"--set=run_dir={shared_dir}")
    assert (result.returncode, result.stderr.count("\n")) == (5, 1)
    assert "File exists" in result.stderr


@pytest.mark.parametrize("limit", ["5", "4095", "2TiB", "99999999999TiB"])
def test_sizes_that_no_recording_has(tmp_path: Path, limit: str) -> None:
    result = trimaran("record", str(tmp_path / "new"), f"--limit={limit}", f"--set=run_dir={tmp_path}")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "4KiB to 1TiB" in result.stderr


class Gate:
    """Of a service that computes nothing: a recording has its size and no calls."""

    calls, bytes, full = 0, 128, False
    recording = False

    def record(self, _path: str, _max_bytes: int, _fingerprint: str) -> Gate:
        self.recording = True
        return self

    def stop_recording(self) -> None:
        self.recording = False


def test_a_recording_that_nobody_asks_about_ends() -> None:
    """As if whoever asked for it had been killed; refused attempts at another do not keep it alive."""
    gate: Any = Gate()
    tap, begun = Tap("print"), time.monotonic()
    start = Record(action="start", path="x", max_bytes=4096)
    assert not tap.handle(start, gate).error
    tap.drop_forgotten(begun + FORGOTTEN_S, gate)
    assert gate.recording
    assert not tap.handle(Record(action="look"), gate).error
    asked = time.monotonic()
    assert "another recording" in tap.handle(start, gate).error
    tap.drop_forgotten(asked + FORGOTTEN_S + 0.001, gate)
    assert not gate.recording
    assert "no recording is under way" in tap.handle(Record(action="look"), gate).error
    assert not tap.handle(start, gate).error


def test_the_tap_refuses_what_makes_no_sense() -> None:
    tap, gate = Tap("print"), None
    for message, complaint in (
        (Record(action="dance"), "not start, look or stop"),
        (Record(action="look"), "no recording is under way"),
        (Record(action="start", path="x", max_bytes=0), "a size is 4096 bytes to 1 TiB"),
        (Record(action="start", path="x", max_bytes=4095), "not 4095"),
        (Record(action="start", path="x", max_bytes=1 << 60), "a size is 4096 bytes to 1 TiB"),
    ):
        state = tap.handle(message, gate)  # type: ignore[arg-type]
        assert isinstance(state, Recorded)
        assert complaint in state.error


def test_statistics_by_layer_are_shown(model, shared_dir: Path, make_client: MakeClient) -> None:
    client = make_client(at=shared_dir)
    client.connect()
    assert client.wait(client.submit(1, *model.batch(2))).shape == (2, model.facts.hidden_size)
    result = trimaran("stats", f"--set=run_dir={shared_dir}")
    assert result.returncode == 0, result.stderr
    assert "expert_engine_calls_total" in result.stdout
    assert [line for line in result.stdout.splitlines() if line.startswith("    1 ")]
