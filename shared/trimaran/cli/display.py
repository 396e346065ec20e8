"""What `trimaran serve` shows of a server: live bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from trimaran.cli.api_client import Health
from trimaran.cli.log_relay import LogLine

_EXPECTED = "waiting for the attention service"
"""What `unavailable` means while a server starts: nothing is wrong."""


class Display(Protocol):
    """Shows a server's start. Log lines come from threads, everything else from the main thread."""

    def log(self, line: LogLine) -> None:
        """A service wrote a line."""

    def health(self, health: Health) -> None:
        """The server told its state."""

    def say(self, text: str) -> None:
        """A line for the person in front."""

    def piece(self, text: str, *, dim: bool = False) -> None:
        """A piece of an answer, as it comes."""

    def starting(self, services: tuple[str, ...]) -> contextlib.AbstractContextManager[None]:
        """Lasts as long as the server starts."""


class TerminalDisplay:
    """Bars while the services load, then their log lines with the service's name in front."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._lock = threading.Lock()

    def log(self, line: LogLine) -> None:
        """While the server starts only what went wrong is printed; the rest moves the bars."""
        with self._lock, contextlib.suppress(OSError):
            if self._progress is None or line.level not in {"info", "debug"}:
                self._print_log(line)
            else:
                self._advance(line)

    def health(self, health: Health) -> None:
        """Moves the attention service's bar."""
        with self._lock, contextlib.suppress(OSError):
            if self._progress is not None and health.progress is not None and "attn" in self._tasks:
                self._progress.update(self._tasks["attn"], total=1.0, completed=health.progress)

    def say(self, text: str) -> None:
        """Prints a line as it is."""
        with contextlib.suppress(OSError):
            self._console.print(Text(text), soft_wrap=True)

    def piece(self, text: str, *, dim: bool = False) -> None:
        """Prints without a line break."""
        with contextlib.suppress(OSError):
            self._console.print(Text(text, style="dim" if dim else ""), end="", soft_wrap=True)

    @contextlib.contextmanager
    def starting(self, services: tuple[str, ...]) -> Iterator[None]:
        """Shows one bar for each service."""
        columns = (
            SpinnerColumn(finished_text="✔"),
            TextColumn("{task.fields[service]:8}"),
            BarColumn(bar_width=24),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
        )
        progress = Progress(*columns, console=self._console, transient=True)
        self._tasks = {name: progress.add_task("starting", service=name, total=None) for name in services}
        with progress:
            self._progress = progress
            try:
                yield
            finally:
                with self._lock:
                    self._progress = None

    def _print_log(self, line: LogLine) -> None:
        style = {"warning": "yellow", "error": "red", "debug": "dim"}.get(line.level, "")
        self._console.print(Text(line.text(), style=style), soft_wrap=True)

    def _advance(self, line: LogLine) -> None:
        assert self._progress is not None
        task = self._tasks.get(line.service)
        if task is None:
            return
        progress = line.fields.get("progress")
        if line.is_ready:
            self._progress.update(task, description="ready", total=1.0, completed=1.0)
        elif isinstance(progress, (int, float)):
            self._progress.update(task, description=line.message, total=1.0, completed=float(progress))
        else:
            self._progress.update(task, description=line.message[:60])


class PlainDisplay:
    """Lines only, for files, pipes and continuous integration.

    Args:
        stream: where the lines go.
        raw_logs: pass the services' JSON records on as they are.
    """

    def __init__(self, stream: TextIO, *, raw_logs: bool = False) -> None:
        self._stream = stream
        self._raw_logs = raw_logs
        self._last_state = ""
        self._lock = threading.Lock()

    def log(self, line: LogLine) -> None:
        """Prints the line."""
        self.say(line.raw if self._raw_logs else line.text())

    def health(self, health: Health) -> None:
        """Prints a change of state, not every answer."""
        percent = f" {health.progress:.0%}" if health.progress and not health.ready else ""
        told = f"{health.state} {health.detail}".strip() + percent
        state = _EXPECTED if health.state == "unavailable" else told
        if state != self._last_state:
            self._last_state = state
            self.say(f"{time.strftime('%H:%M:%S')} server   {state}")

    def say(self, text: str) -> None:
        """Prints a line as it is."""
        with self._lock, contextlib.suppress(OSError):
            self._stream.write(text + "\n")
            self._stream.flush()

    def piece(self, text: str, *, dim: bool = False) -> None:
        """Prints without a line break; reasoning looks like the rest."""
        del dim
        with self._lock, contextlib.suppress(OSError):
            self._stream.write(text)
            self._stream.flush()

    @contextlib.contextmanager
    def starting(self, services: tuple[str, ...]) -> Iterator[None]:
        """Says what starts."""
        self.say(f"{time.strftime('%H:%M:%S')} server   starting {', '.join(services)}")
        yield
