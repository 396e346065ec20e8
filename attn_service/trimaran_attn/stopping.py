"""Ending a step between two layers, when nobody wants its result any more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import TIMEOUT_MAX, Lock, Timer

import numpy as np
from numpy.typing import NDArray

from trimaran_attn.scheduler import Chunk, StepPlan


class StepStoppedError(Exception):
    """The step was given up; nothing of it may be booked."""


class StepStop:
    """By which other threads end the step under way. What it began to write to the cache belongs to nobody.

    A chunk of a long prompt takes most of a minute on a slow CPU, so neither its abort nor its deadline waits
    for it. A step of several requests goes on, since it is wanted by the others.

    Attributes:
        flag: int32 [1]; whoever computes a step looks between layers, and ends if it is not 0.
    """

    def __init__(self) -> None:
        self.flag: NDArray[np.int32] = np.zeros(1, np.int32)
        self._lock = Lock()
        self._lone: str | None = None
        self._unwanted: set[str] = set()
        self._closed = False

    def check(self) -> None:
        """For who computes: between two layers.

        Raises:
            StepStoppedError: the step is to end.
        """
        if self.flag[0]:
            raise StepStoppedError

    @contextmanager
    def watching(self, plan: StepPlan, now: float) -> Iterator[None]:
        """While the step of `plan` is computed, from `now` on by the clock of the deadlines."""
        lone = plan.chunks[0] if len(plan.chunks) == 1 else None
        with self._lock:
            self._lone = None if lone is None else lone.request.request_id
            self.flag[0] = self._closed or self._lone in self._unwanted
        timer = self._timer(lone, now)
        try:
            yield
        finally:
            if timer is not None:
                timer.cancel()
            with self._lock:
                self._lone = None
                self.flag[0] = 0

    def _timer(self, lone: Chunk | None, now: float) -> Timer | None:
        """Ends the step at its only request's deadline; a single token is sooner computed than timed."""
        if lone is None or lone.length == 1 or lone.request.deadline_at is None:
            return None
        left_s = min(max(lone.request.deadline_at - now, 0.0), TIMEOUT_MAX)
        timer = Timer(left_s, self._end_step_of, (lone.request.request_id,))
        timer.daemon = True
        timer.start()
        return timer

    def _end_step_of(self, request_id: str) -> None:
        with self._lock:
            if self._lone == request_id:
                self.flag[0] = 1

    def announce(self, request_id: str) -> None:
        """Any thread: this request is going to be aborted; end the step if it is for this one alone."""
        with self._lock:
            self._unwanted.add(request_id)
            if self._lone == request_id:
                self.flag[0] = 1

    def settle(self, request_id: str) -> None:
        """The request that was announced is aborted, or was over before."""
        with self._lock:
            self._unwanted.discard(request_id)

    def close(self) -> None:
        """Any thread: end this step and every later one."""
        with self._lock:
            self._closed = True
            self.flag[0] = 1
