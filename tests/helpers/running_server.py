"""A real `trimaran serve` under test: its three processes, what it printed, and what it leaves behind."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
from trimaran.lifecycle import SUPERVISOR_VARIABLE

TRIMARAN = str(Path(sys.executable).with_name("trimaran"))
READY_S = 90.0
STOP_S = 30.0
SERVICES = ("experts", "attn", "gateway")
SHARED_MEMORY = Path("/dev/shm")


class RunningServer:
    """`trimaran serve` as a child, in a runtime directory of its own, so that leftovers are seen.

    Args:
        arguments: after `trimaran serve`.
        base: where the run directory goes; short, for sockets have short names.
    """

    def __init__(
        self, arguments: Sequence[str], base: Path, environ: Mapping[str, str] | None = None
    ) -> None:
        self.base = base
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [TRIMARAN, "serve", "--port", "0", *arguments],
            env={
                **os.environ,
                "XDG_RUNTIME_DIR": str(base),
                SUPERVISOR_VARIABLE: str(os.getpid()),
                **environ,
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = ""
        self.pids: set[int] = {self.process.pid}

    def wait_ready(self) -> None:
        """Until it says that it is ready; a failure shows all that it printed."""
        line = self.wait_line("Ready at ", READY_S)
        self.url = line.split()[2]
        self.note_pids()

    def wait_line(self, beginning: str, timeout_s: float) -> str:
        """The first line that starts so."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            found = [line for line in self.lines if line.startswith(beginning)]
            if found:
                return found[0]
            assert self.process.poll() is None, f"serve ended early:\n{self.text()}"
            time.sleep(0.05)
        raise AssertionError(f"no line {beginning!r} in {timeout_s} s:\n{self.text()}")

    def text(self) -> str:
        """All that it printed so far."""
        return "\n".join(self.lines)

    def note_pids(self) -> dict[str, psutil.Process]:
        """The services' processes by name; all pids ever seen are remembered for the check of leftovers."""
        found = {}
        for child in psutil.Process(self.process.pid).children(recursive=True):
            self.pids.add(child.pid)
            with contextlib.suppress(psutil.NoSuchProcess):
                command = child.cmdline()
                for name in SERVICES:
                    if f"trimaran_{name}" in command:
                        found[name] = child
        return found

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Sends a signal and waits for the end; returns the exit code."""
        self.note_pids()
        self.process.send_signal(number)
        code = self.process.wait(STOP_S)
        self._reader.join(5)
        return code

    def leftovers(self) -> list[str]:
        """Processes, run directories and shared memory that are still there."""
        alive = [f"process {pid}" for pid in self.pids if pid != self.process.pid and psutil.pid_exists(pid)]
        files = [str(path) for path in self.base.rglob("*")]
        arenas = [
            str(path)
            for path in SHARED_MEMORY.glob("trimaran-arena-*")
            if any(path.name.startswith(f"trimaran-arena-{pid}-") for pid in self.pids)
        ]
        return alive + files + arenas

    def close(self) -> None:
        """Whatever happened, nothing of it stays."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self.note_pids()
        for pid in self.pids:
            with contextlib.suppress(psutil.NoSuchProcess):
                psutil.Process(pid).kill()
        self.process.wait()
        self._reader.join(5)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with contextlib.suppress(ValueError):
            for line in self.process.stdout:
                self.lines.append(line.rstrip("\n"))

    # --- HTTP -----------------------------------------------------------------------------------------------

    def post(self, path: str, body: object, timeout_s: float = 60) -> tuple[int, Any]:
        """Status and JSON of an answer; `body` is sent as JSON unless it is bytes."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, data, {"Content-Type": "application/json"}, method="POST"
        )
        return _exchange(request, timeout_s)

    def get(self, path: str) -> tuple[int, Any]:
        """Status and JSON of an answer."""
        return _exchange(urllib.request.Request(self.url + path), 30)

    def complete(self, prompt: str | list[int], **parameters: object) -> Any:
        """A greedy completion; fails the test unless the answer is 200."""
        body = {"prompt": prompt, "temperature": 0, "model": self.model(), **parameters}
        status, answer = self.post("/v1/completions", body)
        assert status == 200, answer
        return answer

    def ask(self, question: str, **parameters: object) -> str:
        """The content of a greedy answer to one question, without its reasoning."""
        return self.chat([{"role": "user", "content": question}], **parameters)

    def chat(self, messages: list[dict[str, str]], **parameters: object) -> str:
        """The content of the greedy answer to a conversation, without its reasoning."""
        body = {"model": self.model(), "messages": messages, "temperature": 0, **parameters}
        status, answer = self.post("/v1/chat/completions", body)
        assert status == 200, answer
        return str(answer["choices"][0]["message"]["content"])

    def model(self) -> str:
        """The name that it serves."""
        return str(self.get("/v1/models")[1]["data"][0]["id"])


def _exchange(request: urllib.request.Request, timeout_s: float) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


@contextlib.contextmanager
def running_server(*arguments: str, environ: Mapping[str, str] | None = None) -> Iterator[RunningServer]:
    """A server that is ready, in a fresh runtime directory; both are gone afterwards."""
    with runtime_base() as base, started_server(base, *arguments, environ=environ) as server:
        server.wait_ready()
        yield server


@contextlib.contextmanager
def started_server(
    base: Path, *arguments: str, environ: Mapping[str, str] | None = None
) -> Iterator[RunningServer]:
    """A server that has been started."""
    server = RunningServer(arguments, base, environ or {})
    try:
        yield server
    finally:
        server.close()


@contextlib.contextmanager
def runtime_base() -> Iterator[Path]:
    """A private directory with a short name."""
    base = Path(tempfile.mkdtemp(prefix="tri-"))
    try:
        yield base
    finally:
        shutil.rmtree(base, ignore_errors=True)


def wait_until(condition: Any, timeout_s: float, what: str) -> None:
    """Polls until `condition()` is true."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.1)
