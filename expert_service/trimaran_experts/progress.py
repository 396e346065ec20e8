"""How far loading is: in the log every few seconds, and for whoever asks."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from trimaran.telemetry import Log

_SAY_EVERY_S = 5.0
_log = Log(__name__)


@dataclass(frozen=True)
class Report:
    """Fraction done, 0 to 1; bytes a second since the start; seconds to go at that speed."""

    fraction: float = 0.0
    bytes_per_s: float = 0.0
    eta_s: float = 0.0


OnProgress = Callable[[Report], None]


class Meter:
    """Counts bytes towards `total` and tells `on_progress` after each piece; `what` is said in the log."""

    def __init__(self, what: str, total: int, on_progress: OnProgress) -> None:
        self._what = what
        self._total = max(1, total)
        self._on_progress = on_progress
        self._done = 0
        self._start = self._said = time.monotonic()

    @property
    def gb_per_s(self) -> float:
        """Speed since the start."""
        return round(self._speed() / 1e9, 2)

    @property
    def seconds(self) -> float:
        """Time since the start."""
        return round(time.monotonic() - self._start, 2)

    def add(self, nbytes: int) -> None:
        """So many more are done."""
        self._done += nbytes
        speed = self._speed()
        left = self._total - self._done
        report = Report(min(1.0, self._done / self._total), speed, left / speed if speed else 0.0)
        self._on_progress(report)
        if time.monotonic() - self._said > _SAY_EVERY_S:
            self._said = time.monotonic()
            percent = round(100 * report.fraction, 1)
            _log.info(self._what, percent=percent, gb_per_s=self.gb_per_s, eta_s=round(report.eta_s))

    def _speed(self) -> float:
        return self._done / max(time.monotonic() - self._start, 1e-9)
