"""Computes calls that came as messages, in a thread beside the control loop with its heartbeats."""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from trimaran.telemetry import Log
from trimaran.wire import Status, Submit

from trimaran_experts.sessions import Answer

MAX_WAITING = 256
_log = Log(__name__)


@dataclass(frozen=True)
class FinishedCall:
    """A call and its answer, for the client `peer`."""

    peer: bytes
    submit: Submit
    answer: Answer


class CallRunner:
    """A bounded queue of calls and one thread; `fileno` is readable while finished calls wait to be taken."""

    def __init__(self) -> None:
        self._calls: queue.Queue[tuple[bytes, Submit, Callable[[], Answer]] | None] = queue.Queue(MAX_WAITING)
        self._finished: deque[FinishedCall] = deque()
        self._event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name="call-runner", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Calls that have not begun."""
        return self._calls.qsize()

    def submit(self, peer: bytes, submit: Submit, compute: Callable[[], Answer]) -> bool:
        """Queue a call; False if too many wait already."""
        try:
            self._calls.put_nowait((peer, submit, compute))
        except queue.Full:
            return False
        return True

    def take_finished(self) -> list[FinishedCall]:
        """The calls that finished since the last time."""
        try:
            os.eventfd_read(self._event)
        except BlockingIOError:
            return []
        return [self._finished.popleft() for _ in range(len(self._finished))]

    def fileno(self) -> int:
        """Readable while `take_finished` has something to give."""
        return self._event

    def close(self) -> None:
        """Finish the call in flight, drop the others, end the thread."""
        while True:
            try:
                self._calls.get_nowait()
            except queue.Empty:
                break
        self._calls.put(None)
        self._thread.join()
        os.close(self._event)

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            peer, submit, compute = call
            self._finished.append(FinishedCall(peer, submit, guarded(compute)))
            os.eventfd_write(self._event, 1)


def guarded(compute: Callable[[], Answer]) -> Answer:
    """The answer of a call; INTERNAL, and a log record, if it fails unexpectedly."""
    try:
        return compute()
    except Exception:  # one client's bad call must not end the service
        _log.exception("a call failed")
        return Answer(Status.INTERNAL)
