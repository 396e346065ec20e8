"""When a crashed service may start again."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field


@dataclass
class RestartPolicy:
    """Back-off that doubles with each crash of the last `window_s`, and an end to it.

    Attributes:
        first_delay_s: pause after the first crash.
        longest_delay_s: upper bound of a pause.
        max_crashes: crashes within the window after which the service is given up.
        window_s: crashes older than this are forgotten.
    """

    first_delay_s: float = 0.5
    longest_delay_s: float = 15.0
    max_crashes: int = 5
    window_s: float = 120.0
    _crashes: deque[float] = field(default_factory=deque)

    def after_crash(self, now: float) -> float | None:
        """Seconds to wait before the next start, or None to give up. `now` is on a monotonic clock."""
        self._crashes.append(now)
        while now - self._crashes[0] > self.window_s:
            self._crashes.popleft()
        count = len(self._crashes)
        if count >= self.max_crashes:
            return None
        return min(self.first_delay_s * float(2 ** (count - 1)), self.longest_delay_s)
