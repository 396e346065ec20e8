"""The service as a process, beside a real expert service, on a random model."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch
from transformers import PreTrainedModel
from trimaran.channel import Client, Received
from trimaran.run_dir import attn_endpoint
from trimaran.synth import write_random_model
from trimaran.wire import (
    EngineStats,
    EngineStatsRequest,
    EngineStatus,
    EngineStatusRequest,
    EngineToGateway,
    GatewayToEngine,
    Generate,
    RequestFailed,
    SamplingParams,
    TokenBatch,
)

pytestmark = pytest.mark.e2e
GatewayClient = Client[EngineToGateway, GatewayToEngine]
START_S = 60.0


class Processes:
    """Starts services on one configuration, and ends what is left."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.run_dir = folder / "run"
        self.run_dir.mkdir(mode=0o700)
        self.config = folder / "config.yaml"
        self.config.write_text(
            f"model: {model}\nrun_dir: {self.run_dir}\nlog_format: text\n"
            "precision: exact\nattn: {device: cpu, threads: 1, max_step_tokens: 24, max_running: 4}\n"
            "experts: {threads: 1, connect_timeout_s: 30}\n"
        )
        self.latest: dict[str, subprocess.Popen[str]] = {}
        self._started: list[subprocess.Popen[str]] = []

    def start(self, service: str) -> None:
        command = [sys.executable, "-m", f"trimaran_{service}", "--config", str(self.config)]
        self.latest[service] = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self._started.append(self.latest[service])

    def client(self) -> GatewayClient:
        return Client(attn_endpoint(self.run_dir), EngineToGateway)

    def end_all(self) -> None:
        for process in self._started:
            if process.poll() is None:
                process.kill()
            process.communicate()


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.gguf"
    return write_random_model(path, "v3", mix="Q8_0", seed=1, tokenizer=False)


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory, model_path: Path) -> Iterator[Processes]:
    """One attention service and one expert service for all tests; the last test ends them."""
    all_of_them = Processes(tmp_path_factory.mktemp("services"), model_path)
    all_of_them.start("attn")
    all_of_them.start("experts")
    yield all_of_them
    all_of_them.end_all()


def wait_state(client: GatewayClient, state: str) -> EngineStatus:
    deadline, status = time.monotonic() + START_S, None
    while time.monotonic() < deadline:
        client.send(EngineStatusRequest())
        event = client.recv(0.2)
        if isinstance(event, Received) and isinstance(event.message, EngineStatus):
            status = event.message
            if status.state == state:
                return status
    raise AssertionError(f"state {state} never came, last {status}")


def answers(client: GatewayClient, names: set[str]) -> dict[str, list[int]]:
    """The tokens of these requests, when all have ended."""
    tokens: dict[str, list[int]] = {name: [] for name in names}
    open_, deadline = set(names), time.monotonic() + START_S
    while open_:
        assert time.monotonic() < deadline
        event = client.recv(1.0)
        if isinstance(event, Received) and isinstance(event.message, TokenBatch):
            tokens[event.message.request_id] += event.message.ids
            if event.message.finish_reason:
                open_.remove(event.message.request_id)
    return tokens


def greedy_request(name: str, prompt: list[int], max_tokens: int) -> Generate:
    sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens)
    return Generate(request_id=name, prompt_ids=prompt, sampling=sampling)


def test_greedy_answers_are_the_references(
    processes: Processes, model_path: Path, build_reference: Callable[[Path], PreTrainedModel]
) -> None:
    reference = build_reference(model_path)
    prompts = {str(i): [(7 * i + 3 * j) % 200 for j in range(n)] for i, n in enumerate((1, 30, 80))}
    with processes.client() as client:
        status = wait_state(client, "ready")
        assert status.context_length == 2048
        for name, prompt in prompts.items():
            client.send(greedy_request(name, prompt, 64))
        tokens = answers(client, set(prompts))
        for name, prompt in prompts.items():
            with torch.no_grad():
                best = reference(torch.tensor([prompt + tokens[name]])).logits[0].argmax(-1).tolist()
            assert tokens[name] == best[len(prompt) - 1 : -1]
        client.send(EngineStatsRequest())
        stats = client.recv(5.0)
        assert isinstance(stats, Received)
        assert isinstance(stats.message, EngineStats)
        assert stats.message.counters["generation_tokens_total"] == 3 * 64
        assert stats.message.observations["attention_wait_on_experts_seconds"]
        assert idle_cpu(processes.latest["attn"]) < 0.05


def idle_cpu(process: subprocess.Popen[str]) -> float:
    """Seconds of CPU that it takes in a second."""
    seen = psutil.Process(process.pid)
    before = seen.cpu_times()
    time.sleep(1.0)
    after = seen.cpu_times()
    return after.user + after.system - before.user - before.system


def test_killed_experts_fail_requests_and_new_ones_serve_again(processes: Processes) -> None:
    with processes.client() as client:
        wait_state(client, "ready")
        client.send(greedy_request("cut", [1, 2, 3], 2000))
        processes.latest["experts"].kill()
        failed, deadline = None, time.monotonic() + 20
        while failed is None:
            assert time.monotonic() < deadline
            event = client.recv(1.0)
            if isinstance(event, Received) and isinstance(event.message, RequestFailed):
                failed = event.message
        assert (failed.request_id, failed.code) == ("cut", "unavailable")
        wait_state(client, "degraded")
        processes.start("experts")
        wait_state(client, "ready")
        client.send(greedy_request("again", [1, 2, 3], 5))
        assert len(answers(client, {"again"})["again"]) == 5


def test_both_end_cleanly_on_a_signal(processes: Processes) -> None:
    with processes.client() as client:
        wait_state(client, "ready")
    for process in processes.latest.values():
        process.send_signal(signal.SIGTERM)
    assert [process.wait(20) for process in processes.latest.values()] == [0, 0]
    assert [path.name for path in processes.run_dir.iterdir() if path.name == "attn.sock"] == []
