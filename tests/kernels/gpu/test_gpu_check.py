"""The script behind `make gpu-check`, as far as it runs without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from interpreted import ON_GPU
from trimaran.gguf import GGMLType

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(ON_GPU, reason="`make gpu-check` runs it whole")


def run_script(tmp_path: Path, *arguments: str) -> tuple[str, dict]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, BENCHMARKS / "gpu_check.py", "--json", tmp_path / "out.json", *arguments]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout, json.loads((tmp_path / "out.json").read_text())


def test_without_a_gpu_it_says_so(tmp_path):
    output, report = run_script(tmp_path)
    assert "gpu-check: skipped: torch sees no CUDA GPU here" in output
    assert report["machine"]["skipped"] == "no CUDA GPU"
    assert report["rows"] == []


def test_every_kernel_is_checked_in_the_interpreter(tmp_path):
    output, report = run_script(tmp_path, "--interpret")
    assert "gpu-check: passed" in output
    cases = {row["case"].split()[1] for row in report["rows"]}
    assert cases == {"expand", "linear", "swiglu", "mla"}
    assert all(0 <= row["value"] <= row["peer_value"] for row in report["rows"])


def test_errors_that_rounding_does_not_explain_fail(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from _gpu_checks import Check

    assert Check("good", 0.01, 0.01).passed
    assert not Check("bad", 0.011, 0.01).passed
    assert not Check("worse", float("nan"), 0.01).passed


def test_speeds_are_held_against_bytes_and_operations(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import _gpu_speed
    from _report import Report

    calls = []
    monkeypatch.setattr(_gpu_speed, "_seconds", lambda call: calls.append(call()) or 1e-3)
    sizes = {"HIDDEN": 256, "WIDTH": 32, "HEADS": 2, "LATENT": 64, "ROPE": 16, "ROTATED_BYTES": 1}
    for name, value in sizes.items():
        monkeypatch.setattr(_gpu_speed, name, value)
    report = Report("test")
    speeds = _gpu_speed.Speeds(report, _gpu_speed.Ceilings(copy=1e6, product=1e9), CPU)
    speeds.linear(GGMLType.Q4_K, (32, 256), (1,))
    speeds.swiglu()
    speeds.decode("fp8", 1, 64)
    linear, swiglu, decode = report.rows
    assert len(calls) == 3
    assert linear.floor == pytest.approx(32 * 148)  # µs at 1 MB/s
    assert swiglu.floor == pytest.approx(2 * 32 * 148)
    assert decode.floor == pytest.approx(64 * (64 + 4 + 32))
    assert linear.of_floor == pytest.approx(linear.floor / 1e3)
