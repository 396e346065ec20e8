"""Runs the sections in a worker process, each within its time; a new worker goes on behind one that broke."""

from __future__ import annotations

import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path

from _gpu_messages import Begin, Cut, End, Failed, Message, Skipped, decode
from _gpu_sections import Section

START_SECONDS = 120.0
"""For importing torch and finding the GPU, before the first section begins."""
KILL_SECONDS = 10.0
"""For a killed worker to be gone: one that waits in the driver may stay, and is left behind."""

_WORKER = Path(__file__).with_name("_gpu_worker.py")


class Watch:
    """Yields what the workers say.

    Args:
        sections: to be run, in order.
        arguments: of the worker.
        total_seconds: then the run is over, and the section that runs is cut off.
        log: takes what workers write to standard error; None leaves it there.
    """

    def __init__(
        self,
        sections: Sequence[Section],
        arguments: Sequence[str],
        total_seconds: float,
        log: Path | None = None,
    ) -> None:
        self._waiting = list(sections)
        self._arguments = arguments
        self._log = log
        self._end = time.monotonic() + total_seconds

    def messages(self) -> Iterator[Message]:
        """Until every section has run, failed, or been left out because time is up."""
        while self._waiting and time.monotonic() < self._end:
            before = len(self._waiting)
            yield from self._one_worker()
            if len(self._waiting) == before:  # not even a section began
                break
        for section in self._waiting:
            yield Skipped(section.name, "no time was left, or no worker started")

    def _one_worker(self) -> Iterator[Message]:
        names = [section.name for section in self._waiting]
        command = [sys.executable, str(_WORKER), *self._arguments, *names]
        with self._log.open("ab") if self._log else nullcontext() as log:
            worker = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log)
        try:
            yield from self._follow(worker)
        finally:
            worker.kill()
            with suppress(subprocess.TimeoutExpired):
                worker.wait(KILL_SECONDS)

    def _follow(self, worker: subprocess.Popen[bytes]) -> Iterator[Message]:
        lines = _lines(worker)
        running: Section | None = None
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                line = lines.get(timeout=max(0.0, min(deadline, self._end) - time.monotonic()))
            except queue.Empty:
                yield self._late(running)
                return
            if line is None:
                break
            message = decode(line)
            yield message
            if isinstance(message, Begin):
                running = self._waiting.pop(0)
                deadline = time.monotonic() + running.seconds
            elif isinstance(message, End):
                running, deadline = None, time.monotonic() + START_SECONDS
        what = running.name if running else "the worker"
        try:
            code = worker.wait(KILL_SECONDS)
        except subprocess.TimeoutExpired:  # as the driver may keep it for a while after a fault
            yield Failed(f"{what}: said its last and did not end")
            return
        if code < 0 or (code and running is None):
            yield Failed(f"{what}: ended with code {code}")

    def _late(self, running: Section | None) -> Message:
        """Nothing came in time."""
        if running is None:
            return Failed("start of the worker: stopped, its time is over")
        is_last = time.monotonic() >= self._end
        return Cut(running.name, "the run's time was over" if is_last else f"it took {running.seconds:.0f} s")


def _lines(worker: subprocess.Popen[bytes]) -> queue.Queue[bytes | None]:
    """The worker's lines as they come; None at their end."""
    lines: queue.Queue[bytes | None] = queue.Queue()

    def read() -> None:
        assert worker.stdout is not None
        with worker.stdout as out:
            for line in out:
                lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    return lines
