"""Service processes as children: started in a session of their own, watched, and stopped with a bound."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from trimaran.lifecycle import SUPERVISOR_VARIABLE

TAIL_LINES = 12
_MAX_LINE_BYTES = 1 << 16


@dataclass(frozen=True)
class ServiceCommand:
    """A service's short name and the command line that runs it."""

    name: str
    argv: Sequence[str]


class Child:
    """One running service.

    Its stderr and stdout are read line by line in a thread; `on_line(name, line)` gets each, and the last few
    are kept for whoever has to explain its death. Create it in the main thread: the kernel signals a child
    when the *thread* that started it ends.
    """

    def __init__(
        self, command: ServiceCommand, environ: Mapping[str, str], on_line: Callable[[str, str], None]
    ) -> None:
        self.name = command.name
        self.started = time.monotonic()
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._on_line = on_line
        self._process = subprocess.Popen(
            command.argv,
            env={**environ, SUPERVISOR_VARIABLE: str(os.getpid())},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, name=f"log-{self.name}", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Process id; also the id of its process group."""
        return self._process.pid

    def poll(self) -> int | None:
        """The exit code, negative for a signal, or None while it runs."""
        return self._process.poll()

    def last_lines(self) -> list[str]:
        """The last lines it wrote; complete once it has ended."""
        if self.poll() is not None:
            self._reader.join(timeout=1.0)
        return list(self._tail)

    def terminate(self) -> None:
        """Asks it to stop."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Ends it and whatever it started, at once."""
        self._signal(signal.SIGKILL)

    def close(self) -> None:
        """Reaps an ended child and closes its pipe."""
        self._process.wait()
        self._reader.join(timeout=1.0)
        if self._process.stdout is not None and not self._reader.is_alive():
            self._process.stdout.close()

    def _signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def _read(self) -> None:
        assert self._process.stdout is not None
        while raw := self._process.stdout.readline(_MAX_LINE_BYTES):
            line = raw.decode(errors="replace").rstrip()
            if line:
                self._tail.append(line)
                self._on_line(self.name, line)


def describe_exit(code: int) -> str:
    """`ended with code 3`, or which signal killed it."""
    if code >= 0:
        return f"ended with code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = ", perhaps for lack of memory (see dmesg)" if -code == signal.SIGKILL else ""
    return f"was killed by {name}{hint}"
