"""`trimaran trace` beside a real server: who waits for whom, on one clock."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running_server import TRIMARAN, RunningServer
from trimaran.synth import random_spec

SPEC = random_spec("v3")
MOE_LAYERS = list(range(SPEC.n_dense_layers, SPEC.n_layers))


@pytest.fixture
def busy_server(random_server: RunningServer) -> Iterator[RunningServer]:
    """A server that answers one long request after another until the test is over."""
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            body = {"prompt": "hello", "max_tokens": 200, "ignore_eos": True, "temperature": 0}
            random_server.post("/v1/completions", json.dumps(body).encode())

    thread = threading.Thread(target=ask)
    thread.start()
    yield random_server
    over.set()
    thread.join()


def record(server: RunningServer, path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (run_dir,) = (socket.parent for socket in server.base.glob("trimaran-*/attn.sock"))
    command = [TRIMARAN, "trace", str(path), "--run-dir", str(run_dir), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_each_layer_is_submitted_computed_and_waited_for(busy_server: RunningServer, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    done = record(busy_server, path, "--steps", "3", "--seconds", "60")
    assert done.returncode == 0, done.stderr
    assert f"{path}: 3 steps" in done.stdout
    events = json.loads(path.read_text())["traceEvents"]
    names = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert names == {1: "attention service", 2: "expert service 0"}
    spans = [e for e in events if e["ph"] == "X"]
    steps = named(spans, "step")
    assert len(steps) == 3
    for step in steps:
        inside = [span for span in spans if contains(step, span)]
        assert [len(named(inside, name)) for name in ("schedule", "forward", "sample", "head")] == [1] * 4
        assert [span["args"]["layer"] for span in named(inside, "attention")] == list(range(SPEC.n_layers))
        for name in ("gate", "submit", "wait"):
            assert [span["args"]["layer"] for span in named(inside, name)] == MOE_LAYERS
        check_hops(inside)


def test_no_server_is_one_clear_line(tmp_path: Path) -> None:
    command = [TRIMARAN, "trace", str(tmp_path / "t.json"), "--run-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode != 0
    assert len(done.stderr.splitlines()) == 1
    assert "nobody answers" in done.stderr


def named(spans: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [span for span in spans if span["name"] == name]


def contains(outer: dict[str, Any], inner: dict[str, Any]) -> bool:
    return bool(outer["ts"] <= inner["ts"] and inner["ts"] + inner["dur"] <= outer["ts"] + outer["dur"])


def check_hops(spans: list[dict[str, Any]]) -> None:
    """The experts begin after the submit began, and end before the wait ends: the clocks are one."""
    computed = named(spans, "experts")
    assert [span["args"]["layer"] for span in computed] == MOE_LAYERS
    for submit, compute, wait in zip(named(spans, "submit"), computed, named(spans, "wait"), strict=True):
        assert submit["ts"] <= compute["ts"]
        assert compute["ts"] + compute["dur"] <= wait["ts"] + wait["dur"]
