"""The script behind `make gpu-check`, as far as it runs without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gpu_walk import BENCHMARKS
from interpreted import ON_GPU
from trimaran.gguf import GGMLType

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(ON_GPU, reason="`make gpu-check` runs it whole")


def run_script(tmp_path: Path, *arguments: str, code: int = 0) -> tuple[str, dict]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, BENCHMARKS / "gpu_check.py", "--json", tmp_path / "out.json", *arguments]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == code, result.stdout + result.stderr
    return result.stdout, json.loads((tmp_path / "out.json").read_text())


def test_without_a_gpu_it_says_so(tmp_path):
    output, report = run_script(tmp_path)
    assert "gpu-check: skipped: torch sees no CUDA GPU here" in output
    assert report["machine"]["skipped"] == "no CUDA GPU"
    assert report["rows"] == []


def test_every_kernel_is_checked_in_the_interpreter(tmp_path):
    output, report = run_script(tmp_path, "--interpret")
    assert "gpu-check: passed" in output
    assert "skipped model: it needs a GPU" in output
    cases = {row["case"].split()[1] for row in report["rows"]}
    assert cases == {"expand", "linear", "swiglu", "mla", "small", "hop", "experts", "sampling"}
    assert all(0 <= row["value"] <= row["peer_value"] for row in report["rows"])


def test_sections_exist_and_fit_into_ten_minutes(load):
    sections = load("_gpu_sections")
    assert len({section.name for section in sections.SECTIONS}) == len(sections.SECTIONS)
    assert sections.TOTAL_SECONDS < 600
    assert sum(section.seconds for section in sections.SECTIONS) <= 1.5 * sections.TOTAL_SECONDS
    for section in sections.SECTIONS:
        module, _, function = section.function.partition(":")
        assert callable(getattr(load(module), function))


def test_errors_that_rounding_does_not_explain_fail(load):
    said = []
    bench = load("_gpu_bench").Bench(CPU, said.append)
    failed = load("_gpu_messages").Failed
    for error, fails in ((0.01, False), (0.011, True), (float("nan"), True)):
        said.clear()
        bench.check("case", error, 0.01)
        assert isinstance(said[-1], failed) == fails


def test_a_part_that_breaks_is_told_in_a_line_and_the_next_goes_on(load, capsys):
    said = []
    bench = load("_gpu_bench").Bench(CPU, said.append)
    with bench.part("first"):
        raise ValueError("at 12:4:\n    x = tl.dot(a, b)\n\n  the cause\n")
    with bench.part("second"):
        bench.check("case", 0.0, 0.0)
    assert isinstance(said[0], load("_gpu_messages").Failed)
    assert said[0].what.startswith("first: ValueError: the cause (test_gpu_check.py:")
    assert said[1].case == "check case"
    assert "tl.dot" in capsys.readouterr().err


def test_a_fault_of_the_gpu_itself_breaks_the_section(load, monkeypatch):
    def fault(device):
        raise RuntimeError("an illegal memory access was encountered")

    said = []
    bench = load("_gpu_bench").Bench(torch.device("cuda:0"), said.append)
    monkeypatch.setattr(torch.cuda, "synchronize", fault)
    with pytest.raises(RuntimeError, match="illegal memory access"), bench.part("first"):
        raise ValueError
    assert not said


def test_a_kernel_that_breaks_leaves_the_others_their_checks(load, monkeypatch):
    checks, said = load("_gpu_checks"), []
    real = checks.quant_linear

    def broken(x, matrix):
        if matrix.type is GGMLType.Q6_K:
            raise RuntimeError("out of resources")
        return real(x, matrix)

    monkeypatch.setattr(checks, "quant_linear", broken)
    monkeypatch.setattr(checks, "LAYOUTS", (GGMLType.Q6_K, GGMLType.Q8_0))
    bench = load("_gpu_bench").Bench(CPU, said.append)
    checks.check_one_token(bench)
    checks.check_tokens(bench)
    failed = [message.what for message in said if isinstance(message, load("_gpu_messages").Failed)]
    assert [what.partition(":")[0] for what in failed] == ["linear Q6_K 1", "linear Q6_K 3"]
    cases = {message.case for message in said if isinstance(message, load("_gpu_messages").Figure)}
    assert {"check expand Q6_K", "check linear Q8_0 1", "check linear Q8_0 3"} <= cases


def follow(load, monkeypatch, tmp_path, script: str, seconds: float = 1.0, total: float = 100.0) -> list:
    """What the watcher makes of a worker that runs `script`, in which `say` writes a message."""
    messages, watch, sections = (load(f"_gpu_{name}") for name in ("messages", "watch", "sections"))
    worker = tmp_path / "worker.py"
    head = f"import os, sys, time\nsys.path.insert(0, {str(BENCHMARKS)!r})\nfrom _gpu_messages import *\n"
    say = "def say(m):\n    os.write(1, encode(m))\n"
    worker.write_text(f"{head}{say}names = sys.argv[1:]\n{script}")
    monkeypatch.setattr(watch, "_WORKER", worker)
    listed = [sections.Section(name, "none:none", seconds) for name in ("a", "b")]
    said = list(watch.Watch(listed, [], total).messages())
    assert all(isinstance(message, messages.Message) for message in said)
    return [(type(message).__name__, str(message)) for message in said]


def test_a_section_that_breaks_does_not_stop_the_next(load, monkeypatch, tmp_path):
    script = """
for name in names:
    say(Begin(name))
    if name == "a":
        os.kill(os.getpid(), 9)
    say(End(name))
"""
    said = follow(load, monkeypatch, tmp_path, script)
    assert [kind for kind, _ in said] == ["Begin", "Failed", "Begin", "End"]
    assert "a: ended with code -9" in said[1][1]


def test_a_section_that_hangs_is_stopped(load, monkeypatch, tmp_path):
    script = """
for name in names:
    say(Begin(name))
    time.sleep(60 if name == "a" else 0)
    say(End(name))
"""
    said = follow(load, monkeypatch, tmp_path, script)
    assert [kind for kind, _ in said] == ["Begin", "Cut", "Begin", "End"]
    assert "it took 1 s" in said[1][1]


def test_a_worker_that_does_not_end_is_left_behind(load, monkeypatch, tmp_path):
    """The driver may keep one that broke: the sections behind it get another all the same."""
    monkeypatch.setattr(load("_gpu_watch"), "KILL_SECONDS", 1.0)
    script = """
for name in names:
    say(Begin(name))
    if name == "a":
        os.close(1)
        time.sleep(60)
    say(End(name))
"""
    said = follow(load, monkeypatch, tmp_path, script, seconds=50.0)
    assert [kind for kind, _ in said] == ["Begin", "Failed", "Begin", "End"]
    assert "a: said its last and did not end" in said[1][1]


def test_a_run_whose_time_is_over_says_what_was_cut_off_and_what_never_began(load, monkeypatch, tmp_path):
    script = """
say(Begin(names[0]))
time.sleep(60)
"""
    said = follow(load, monkeypatch, tmp_path, script, seconds=50.0, total=3.0)
    assert [kind for kind, _ in said] == ["Begin", "Cut", "Skipped"]
    assert "the run's time was over" in said[1][1]


def test_the_end_says_what_came_of_each_section(load, tmp_path):
    messages, check_module = load("_gpu_messages"), load("gpu_check")
    path = tmp_path / "out.json"
    check = check_module.Check(load("_report").Report("gpu-check"), path)
    for section in ("a", "b", "c"):
        check.take(messages.Begin(section))
        if section == "a":
            check.take(messages.End(section))
        if section == "b":
            check.take(messages.Cut(section, "it took 3 s"))
    check.take(messages.Failed("c: ended with code -9"))
    check.take(messages.Skipped("d", "no time was left"))
    assert check.summary() == [
        "1 sections came to their end",
        "unfinished: b: it took 3 s",
        "unfinished: c: it broke off",
        "skipped: d: no time was left",
        "FAILED: c: ended with code -9",
    ]
    assert json.loads(path.read_text())["machine"]["unfinished_sections"] == check.unfinished


def test_what_building_took_is_taken_from_the_time(tmp_path):
    output, report = run_script(tmp_path, "--interpret", "--spent", "9999", code=1)
    assert "gpu-check: UNFINISHED" in output
    assert report["rows"] == []


def test_a_worker_that_never_starts_ends_the_run(load, monkeypatch, tmp_path):
    said = follow(load, monkeypatch, tmp_path, "sys.exit(3)")
    assert [kind for kind, _ in said] == ["Failed", "Skipped", "Skipped"]


def test_speeds_are_held_against_bytes_and_operations(load, monkeypatch):
    speed, bench_module = load("_gpu_speed"), load("_gpu_bench")
    calls, rows = [], []
    monkeypatch.setattr(bench_module, "seconds_of", lambda call: calls.append(call()) or 1e-3)
    sizes = {"HIDDEN": 256, "WIDTH": 32, "HEADS": 2, "LATENT": 64, "ROPE": 16, "ROTATED_BYTES": 1}
    for name, value in sizes.items():
        monkeypatch.setattr(speed, name, value)
    bench = bench_module.Bench(CPU, rows.append)
    bench.ceilings = bench_module.Ceilings(copy=1e6, product=1e9)
    speed.time_linear(bench, GGMLType.Q4_K, (32, 256), (1,))
    speed.time_swiglu(bench)
    speed.time_decode(bench, "fp8", 1, 64)
    linear, swiglu, decode = rows
    assert len(calls) == 3
    assert linear.value == pytest.approx(1e3)  # µs
    assert linear.floor == pytest.approx(32 * 148)  # µs at 1 MB/s
    assert swiglu.floor == pytest.approx(2 * 32 * 148)
    assert decode.floor == pytest.approx(64 * (64 + 4 + 32))
