"""Reads the weights in a thread, so that clients that say hello meanwhile hear how far it is."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from trimaran_experts.engine import ShardEngine
from trimaran_experts.progress import OnProgress, Report

Load = Callable[[OnProgress, Callable[[], bool]], ShardEngine | None]
"""Takes who wants to hear how far it is, and a question whether to give up; None if it gave up."""


class LoadingThread:
    """Runs `load` in a thread; `fileno` becomes readable when it ends."""

    def __init__(self, load: Load) -> None:
        self.report = Report()
        self._load = load
        self._cancelled = threading.Event()
        self._result: ShardEngine | None = None
        self._error: BaseException | None = None
        self._ended = False
        self._event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name="loader", daemon=True)
        self._thread.start()

    @property
    def finished(self) -> bool:
        """Whether `result` has something to say."""
        return self._ended

    def result(self) -> ShardEngine | None:
        """The engine, or None if loading gave up; raises what loading raised."""
        self._thread.join()  # its last act, after the result is there, is to make the event readable
        os.eventfd_read(self._event)
        if self._error is not None:
            raise self._error
        return self._result

    def fileno(self) -> int:
        """Readable from the end of loading until `result` is asked."""
        return self._event

    def close(self) -> None:
        """Give up, if loading still runs."""
        self._cancelled.set()
        self._thread.join()
        os.close(self._event)

    def _run(self) -> None:
        try:
            self._result = self._load(self._note, self._cancelled.is_set)
        except BaseException as error:  # handed to the control loop
            self._error = error
        finally:
            self._ended = True
            os.eventfd_write(self._event, 1)

    def _note(self, report: Report) -> None:
        self.report = report
