"""When a crashed service may start again."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field


@dataclass
class RestartPolicy:
    """Back-off that doubles with each crash of the last `window_s`, and an end to it.

    A service whose work others do meanwhile is never given up: from `max_crashes` on its pauses go on to
    double, up to `patient_delay_s`, until it has lived for `window_s`.

    Attributes:
        first_delay_s: pause after the first crash.
        longest_delay_s: upper bound of a pause.
        patient_delay_s: upper bound of a pause of a service that others stand in for.
        max_crashes: crashes within the window after which the service is given up.
        window_s: crashes older than this are forgotten.
    """

    first_delay_s: float = 0.5
    longest_delay_s: float = 15.0
    patient_delay_s: float = 300.0
    max_crashes: int = 5
    window_s: float = 120.0
    _crashes: deque[float] = field(default_factory=deque)
    _patience_s: float = 0.0
    _started: float = 0.0

    def in_loop(self, now: float) -> bool:
        """Whether it crashed again and again and has not lived for `window_s` since."""
        return self._patience_s > 0 and now - self._started <= self.window_s

    def after_crash(self, now: float, *, has_stand_in: bool = False) -> float | None:
        """Seconds to wait before the next start, or None to give up.

        Args:
            now: on a monotonic clock.
            has_stand_in: whether another service does its work meanwhile.
        """
        if not self.in_loop(now):
            self._patience_s = 0.0
        self._crashes.append(now)
        while now - self._crashes[0] > self.window_s:
            self._crashes.popleft()
        count = len(self._crashes)
        if not self._patience_s and count < self.max_crashes:
            delay = min(self.first_delay_s * float(2 ** (count - 1)), self.longest_delay_s)
        elif has_stand_in:
            self._patience_s = min(2 * max(self._patience_s, self.longest_delay_s), self.patient_delay_s)
            delay = self._patience_s
        else:
            return None
        self._started = now + delay
        return delay
