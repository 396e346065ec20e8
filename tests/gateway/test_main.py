from __future__ import annotations

import contextlib
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from trimaran.gguf import write_gguf

READY = re.compile(r"ready (http://[^\s\"]+)")


@contextlib.contextmanager
def gateway(run_dir: Path, model: Path, port: int = 0) -> Iterator[subprocess.Popen[str]]:
    options = {"model": model, "run_dir": run_dir, "gateway.port": port, "log_format": "text"}
    flags = [flag for name, value in options.items() for flag in ("--set", f"{name}={value}")]
    with subprocess.Popen(
        [sys.executable, "-m", "trimaran_gateway", *flags], stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_ready(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    for line in process.stderr:
        found = READY.search(line)
        if found:
            return found[1]
    raise AssertionError("it never got ready")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serves_without_an_engine_and_ends_on_a_signal(
    tmp_path: Path, model_file: Path, number: signal.Signals
) -> None:
    with gateway(tmp_path, model_file) as process:
        url = wait_ready(process)
        health = httpx.get(f"{url}/health")
        assert health.status_code == 503
        assert health.json()["status"] == "unavailable"
        assert httpx.get(f"{url}/v1/models").json()["data"][0]["id"] == "tiny-test"
        process.send_signal(number)
        assert process.wait(10) == 0


def test_a_taken_port_is_one_line(tmp_path: Path, model_file: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with gateway(tmp_path, model_file, port) as process:
            _, error = process.communicate(timeout=60)
    assert process.returncode == 2
    assert re.search(rf"error: gateway: cannot listen on 127.0.0.1:{port}: .*gateway.port", error)


def test_a_foreign_tokeniser_is_one_line(tmp_path: Path, metadata: Callable[..., dict[str, Any]]) -> None:
    path = tmp_path / "foreign.gguf"
    write_gguf(path, metadata(**{"tokenizer.ggml.pre": "llama-bpe"}), [])
    with gateway(tmp_path, path) as process:
        _, error = process.communicate(timeout=60)
    assert process.returncode == 3
    assert error.count("\n") == 1
    assert "'llama-bpe' is not supported (supported: deepseek-llm" in error
