"""Two attention services on one expert service: four real processes."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families
from running_server import TRIMARAN, RunningServer, running_server, wait_until

DEFERRED = ("--no-greeting", "--set", "attn.defer_experts=1", "--set", "attn.mla=absorbed")
QUESTIONS = [f"What is {a} + {b}?" for a, b in ((8, 5), (17, 25), (61, 9), (33, 44), (70, 11), (2, 96))]
N_STREAMS, N_TOKENS = 6, 600
WAIT_S = 60.0


@pytest.fixture(scope="module")
def two(demo_model: str) -> Iterator[RunningServer]:
    replicas = ("--set", "attn.replicas=cpu,cpu", "--set", "attn.micro_batches=2")
    with running_server("--model", demo_model, *replicas, *DEFERRED) as server:
        yield server


def per_engine(server: RunningServer, name: str) -> dict[str, float]:
    """A metric's samples by the label `engine`."""
    return per_label(server, name, "engine")


def per_label(server: RunningServer, name: str, label: str) -> dict[str, float]:
    """A metric's samples by a label."""
    text = httpx.get(f"{server.url}/metrics", timeout=30).text
    samples = (s for family in text_string_to_metric_families(text) for s in family.samples)
    return {s.labels[label]: s.value for s in samples if s.name == f"trimaran_{name}"}


def engine_process(server: RunningServer, number: int) -> psutil.Process:
    children = psutil.Process(server.process.pid).children()
    return next(child for child in children if f"--set=attn.replica={number}" in child.cmdline())


def ask_all(server: RunningServer) -> list[str]:
    with ThreadPoolExecutor(len(QUESTIONS)) as pool:
        return list(pool.map(lambda question: server.ask(question, max_tokens=40), QUESTIONS))


def test_answers_are_those_of_one_service(two: RunningServer, demo_model: str) -> None:
    """With deferred experts, and steps in parts: the same greedy text as whole steps of one service."""
    with running_server("--model", demo_model, "--device", "cpu", *DEFERRED) as one:
        wanted = ask_all(one)
    assert ask_all(two) == wanted
    assert all(count > 0 for count in per_engine(two, "generation_tokens_total").values())
    assert per_engine(two, "attention_service_up") == {"0": 1, "1": 1}
    status, health = two.get("/health")
    assert (status, health["status"], health["engines"]) == (200, "ready", {"0": "ready", "1": "ready"})


def test_a_conversation_finds_its_cache(two: RunningServer) -> None:
    talk = [{"role": "user", "content": "Remember the number 4711. " * 30}]
    before = sum(per_engine(two, "prompt_tokens_cached_total").values())
    for _ in range(4):
        talk += [{"role": "assistant", "content": two.chat(talk, max_tokens=8)}]
        talk += [{"role": "user", "content": "Go on."}]
    saved = sum(per_engine(two, "prompt_tokens_cached_total").values()) - before
    assert saved >= 3 * 64


def test_both_are_on_one_timeline(two: RunningServer, tmp_path: Path) -> None:
    (run_dir,) = (socket.parent for socket in two.base.glob("trimaran-*/attn-1.sock"))
    path = tmp_path / "trace.json"
    command = [TRIMARAN, "trace", str(path), "--run-dir", str(run_dir), "--steps", "3", "--seconds", "60"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as tracing:
        while tracing.poll() is None:
            ask_all(two)
        assert tracing.stdout is not None
        assert f"{path}: 6 steps" in tracing.stdout.read()
    events = json.loads(path.read_text())["traceEvents"]
    names = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert names == {1: "attention service 0", 2: "attention service 1", 3: "expert service 0"}
    steps = [event["pid"] for event in events if event["name"] == "step"]
    assert sorted(steps) == [1, 1, 1, 2, 2, 2]


def stream(server: RunningServer, prompt: list[int], begun: Barrier) -> tuple[int, str]:
    """How many pieces came, and how it ended: a finish reason, or an error's message."""
    body = {"model": "demo", "prompt": prompt, "max_tokens": N_TOKENS, "ignore_eos": True, "stream": True}
    pieces, end = 0, "nothing"
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=120) as answer:
        for line in answer.iter_lines():
            if not line.startswith("data: {"):
                continue
            event: Any = json.loads(line.removeprefix("data: "))
            if "error" in event:
                return pieces, str(event["error"]["message"])
            pieces += 1
            if pieces == 1:
                begun.wait(WAIT_S)
            end = event["choices"][0]["finish_reason"] or end
    return pieces, end


def test_one_is_killed_under_load(two: RunningServer) -> None:
    begun = Barrier(N_STREAMS + 1)
    with ThreadPoolExecutor(N_STREAMS) as pool:
        ends = [pool.submit(stream, two, [5 + number] * 20, begun) for number in range(N_STREAMS)]
        begun.wait(WAIT_S)
        running = per_engine(two, "num_requests_running")
        engine_process(two, 1).send_signal(signal.SIGKILL)
        results = [end.result() for end in ends]
    assert running == {"0": N_STREAMS / 2, "1": N_STREAMS / 2}
    failed = [reason for _, reason in results if reason != "length"]
    assert len(failed) == N_STREAMS / 2, results
    assert all("engine" in reason for reason in failed)
    assert two.ask(QUESTIONS[0], max_tokens=40), "the other one answers meanwhile"
    wait_until(lambda: two.get("/health")[1]["status"] == "ready", WAIT_S, "the killed one is back")
    health = two.get("/health")[1]
    assert health["engines"] == {"0": "ready", "1": "ready"}
    assert health["crashes"] == {"attn-1": health["crashes"]["attn-1"]}
    assert health["crashes"]["attn-1"].startswith("crashed 1 time; last, it was killed by SIGKILL")
    crashes = per_label(two, "service_crashes_total", "service")
    assert crashes == {"experts": 0, "attn-0": 0, "attn-1": 1, "gateway": 0}
    before = per_engine(two, "generation_tokens_total")["1"]
    ask_all(two)
    assert per_engine(two, "generation_tokens_total")["1"] > before, "it takes its share again"
