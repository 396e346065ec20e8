"""Stop strings in a stream of text: caught across chunk borders, never leaked."""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Passes text on until a stop string appears in it.

    Text that might be the beginning of a stop string is held back. How the text is cut into chunks changes
    nothing but when it comes out.

    Attributes:
        matched: the stop string that was found, None so far.
        held: characters that are held back now.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._pending = ""
        self.matched: str | None = None

    @property
    def held(self) -> int:
        """Characters that are held back now."""
        return len(self._pending)

    def feed(self, text: str) -> str:
        """What may be shown now. After a match, nothing any more."""
        if self.matched is not None:
            return ""
        if not self._stops:
            return text
        self._pending += text
        found = self._first_match()
        if found is not None:
            start, self.matched = found
            shown, self._pending = self._pending[:start], ""
            return shown
        keep = self._possible_start()
        cut = len(self._pending) - keep
        shown, self._pending = self._pending[:cut], self._pending[cut:]
        return shown

    def flush(self) -> str:
        """What was held back, for the text has ended."""
        shown, self._pending = self._pending, ""
        return shown

    def _first_match(self) -> tuple[int, str] | None:
        """The match that is complete first, as if text came character by character; of those, the longest."""
        found = [(self._pending.find(stop), stop) for stop in self._stops]
        ends = [(start + len(stop), start, stop) for start, stop in found if start >= 0]
        if not ends:
            return None
        _, start, stop = min(ends)
        return start, stop

    def _possible_start(self) -> int:
        """Length of the longest end of the pending text that begins a stop string."""
        longest = max(map(len, self._stops)) - 1
        for length in range(min(longest, len(self._pending)), 0, -1):
            end = self._pending[-length:]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0
