"""A server's end, however it comes, leaves nothing; and what of it dies comes back."""

from __future__ import annotations

import os
import pty
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from running_server import (
    SERVICES,
    TRIMARAN,
    RunningServer,
    running_server,
    runtime_base,
    started_server,
    wait_until,
)

QUICK = ("--device", "cpu", "--no-greeting")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_stop_leaves_nothing(random_model: Path, number: signal.Signals) -> None:
    with running_server("--model", str(random_model), *QUICK) as server:
        assert set(server.note_pids()) == set(SERVICES)
        assert server.stop(number) == 0
        assert server.leftovers() == []


def test_a_stop_while_loading_leaves_nothing(random_model: Path) -> None:
    with runtime_base() as base, started_server(base, "--model", str(random_model), *QUICK) as server:
        wait_until(lambda: set(server.note_pids()) == set(SERVICES), 30, "three services")
        assert server.stop() == 0
        assert server.leftovers() == []


def test_a_closed_terminal_leaves_nothing(random_model: Path) -> None:
    with runtime_base() as base:
        pid, master = pty.fork()
        if pid == 0:
            os.environ["XDG_RUNTIME_DIR"] = str(base)
            os.execv(TRIMARAN, [TRIMARAN, "serve", "--port", "0", "--model", str(random_model), *QUICK])
        drain = threading.Thread(target=_read_until_ready, args=(master,))
        drain.start()
        drain.join(90)
        children = psutil.Process(pid).children(recursive=True)
        assert len(children) == 3
        os.close(master)
        wait_until(lambda: os.waitpid(pid, os.WNOHANG)[0] == pid, 40, "the end of serve")
        assert [child for child in children if child.is_running()] == []
        assert list(base.rglob("*")) == []


def _read_until_ready(master: int) -> None:
    text = b""
    while b"Ready at " not in text:
        text += os.read(master, 4096)


def test_a_second_signal_ends_a_hanging_server(random_model: Path) -> None:
    with running_server("--model", str(random_model), *QUICK) as server:
        for child in server.note_pids().values():
            child.suspend()
        server.process.send_signal(signal.SIGINT)
        time.sleep(1)
        started = time.monotonic()
        server.process.send_signal(signal.SIGINT)
        server.process.wait(10)
        assert time.monotonic() - started < 5
        wait_until(lambda: server.leftovers() == [], 5, "nothing left")


def test_a_killed_server_takes_its_services_along(random_model: Path) -> None:
    with runtime_base() as base:
        with started_server(base, "--model", str(random_model), *QUICK) as server:
            server.wait_ready()
            children = list(server.note_pids().values())
            server.process.kill()
            server.process.wait()
            wait_until(lambda: not any(child.is_running() for child in children), 30, "children gone")
        with started_server(base, "--model", str(random_model), *QUICK) as server:
            server.wait_ready()
            assert "left behind by a server that was killed" in server.text()
            assert server.stop() == 0
            assert server.leftovers() == []


@pytest.mark.parametrize("name", ["experts", "attn", "gateway"])
def test_a_killed_service_comes_back_under_load(random_model: Path, name: str) -> None:
    with running_server("--model", str(random_model), *QUICK) as server:
        expected = server.complete("Hello", max_tokens=8)["choices"][0]["text"]
        with Load(server) as statuses:
            wait_until(lambda: statuses, 30, "a first answer")
            server.note_pids()[name].kill()
            wait_until(lambda: name in server.note_pids(), 30, f"a new {name}")
            wait_until(lambda: _answers(server, expected), 60, "the same answer as before")
        assert set(statuses) <= {200, 500, 502, 503, -1}, statuses
        assert 200 in statuses
        assert server.stop() == 0
        assert server.leftovers() == []


def test_a_killed_lender_is_missed_by_nobody(random_model: Path, kept_dir: Path) -> None:
    """The attention service computes experts itself, from the memory that the expert service keeps."""
    store = ("--set", "experts.store=tmpfs", "--set", f"experts.store_dir={kept_dir}")
    with running_server("--model", str(random_model), *QUICK, *store) as server:
        assert "experts are computed here" in server.text()
        expected = server.complete("Hello", max_tokens=8)["choices"][0]["text"]
        with Load(server) as statuses:
            wait_until(lambda: statuses, 30, "a first answer")
            server.note_pids()["experts"].kill()
            wait_until(lambda: "experts" in server.note_pids(), 30, "new experts")
            wait_until(lambda: _answers(server, expected), 60, "the same answer as before")
        assert set(statuses) == {200}
        assert server.stop() == 0
        assert server.leftovers() == []
    with running_server("--model", str(random_model), *QUICK, "--set", "attn.experts=service") as server:
        assert "experts are computed here" not in server.text()
        assert server.complete("Hello", max_tokens=8)["choices"][0]["text"] == expected


@pytest.fixture
def kept_dir(tmp_path: Path) -> Iterator[Path]:
    """A private directory on a tmpfs."""
    path = Path("/dev/shm") / f"trimaran-test-{os.getpid()}-{tmp_path.name}"
    path.mkdir(mode=0o700)
    yield path
    shutil.rmtree(path)


class Load:
    """Two clients that ask again and again; collects the statuses, -1 for a broken connection."""

    def __init__(self, server: RunningServer) -> None:
        self._server = server
        self._stop = threading.Event()
        self._statuses: list[int] = []
        self._threads = [threading.Thread(target=self._ask) for _ in range(2)]

    def __enter__(self) -> list[int]:
        for thread in self._threads:
            thread.start()
        return self._statuses

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(90)

    def _ask(self) -> None:
        body = {"model": "random", "prompt": "Once", "max_tokens": 48, "temperature": 0}
        body["model"] = self._server.model()
        while not self._stop.is_set():
            try:
                self._statuses.append(self._server.post("/v1/completions", body)[0])
            except (OSError, ValueError):
                self._statuses.append(-1)
                time.sleep(0.1)


def _answers(server: RunningServer, expected: str) -> bool:
    body = {"model": "x", "prompt": "Hello", "max_tokens": 8, "temperature": 0}
    try:
        body["model"] = server.model()
        status, answer = server.post("/v1/completions", body, timeout_s=20)
    except (OSError, ValueError):
        return False
    return status == 200 and answer["choices"][0]["text"] == expected


def test_two_servers_run_side_by_side(random_model: Path) -> None:
    arguments = ("--model", str(random_model), *QUICK)
    with (
        runtime_base() as base,
        started_server(base, *arguments) as one,
        started_server(base, *arguments) as two,
    ):
        one.wait_ready()
        two.wait_ready()
        assert one.url != two.url
        assert two.stop() == 0
        assert one.get("/health")[0] == 200
        assert one.stop() == 0
        assert one.leftovers() == []


def test_a_taken_port_is_one_line(random_model: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        result = subprocess.run(
            [TRIMARAN, "serve", "--model", str(random_model), "--port", port],
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith(f"error: cannot listen on 127.0.0.1:{port}: Address already in use")
