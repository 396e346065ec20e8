"""Signals as items of an inbox, for a main loop that sleeps until something happens."""

from __future__ import annotations

import os
import select
import signal
from types import FrameType, TracebackType
from typing import Any, Self

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_WATCHED = (*STOPPING, signal.SIGCHLD)


class SignalInbox:
    """Collects stop signals and deaths of children while the `with` block runs. For the main thread."""

    def __enter__(self) -> Self:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        self._old_wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._old_handlers: dict[signal.Signals, Any] = {
            number: signal.signal(number, _do_nothing) for number in _WATCHED
        }
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_wakeup)
        os.close(self._reader)
        os.close(self._writer)

    def wait(self, timeout: float) -> list[signal.Signals]:
        """Sleeps until a signal comes, `timeout` seconds at most; returns those that came."""
        ready, _, _ = select.select([self._reader], [], [], max(timeout, 0))
        return [signal.Signals(number) for number in os.read(self._reader, 256)] if ready else []

    def wait_for_stop(self, timeout: float) -> bool:
        """Like `wait`; says whether somebody asked to stop."""
        return any(number in STOPPING for number in self.wait(timeout))


def _do_nothing(_number: int, _frame: FrameType | None) -> None:
    """A Python handler must exist for the number to reach the wakeup descriptor."""
