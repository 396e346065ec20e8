"""One stretch of text (the reasoning, or the answer) on its way out, with its tokens' log probabilities.

Only tokens that show something are told, so that they concatenate to the text as far as tokens can: one whose
text is trimmed in part is whole among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from trimaran_gateway.output.events import TextDelta, TextKind, TokenEntry
from trimaran_gateway.output.stops import StopMatcher
from trimaran_gateway.text.detokenizer import Detokenizer
from trimaran_gateway.text.vocabulary import Vocabulary


class _Placed(NamedTuple):
    """A token at the characters `start` … `stop` - 1 of a section; half a character takes none."""

    start: int
    stop: int
    entry: TokenEntry


class TextSection:
    """Tokens in, shown text out: decodes, trims the edges, looks for stop strings.

    Args:
        kind: what its deltas are called.
        vocabulary: the model's.
        stops: strings that end it.
        trim_start: drop line breaks at the start (they separate the answer from the reasoning).
        trim_end: hold white space at the end back, for `close` may drop it.
    """

    def __init__(
        self,
        kind: TextKind,
        vocabulary: Vocabulary,
        stops: Sequence[str] = (),
        *,
        trim_start: bool = False,
        trim_end: bool = False,
    ) -> None:
        self._kind: TextKind = kind
        self._decoder = Detokenizer(vocabulary)
        self._matcher = StopMatcher(stops)
        self._trim_start = trim_start
        self._trim_end = trim_end
        self._space = ""
        self._decoded = 0  # characters
        self._passed = 0  # of these, the ones that no stop string can begin in
        self._entries: list[_Placed] = []

    @property
    def matched(self) -> str | None:
        """The stop string that was found."""
        return self._matcher.matched

    def feed(self, token: int, entry: TokenEntry | None) -> list[TextDelta]:
        """What `token` lets out."""
        text = self._decoder.feed(token)
        start = self._decoded
        self._decoded += len(text)
        if entry is not None:
            self._entries.append(_Placed(start, self._decoded, entry))
        return self._delta(self._hold_space(self._match(text)))

    def note(self, entry: TokenEntry) -> None:
        """Take in the log probability of a token that is not shown."""
        self._entries.append(_Placed(self._decoded, self._decoded, entry))

    def close(self, *, drop_space: bool = False) -> list[TextDelta]:
        """What is left at the end; `drop_space` drops white space at the very end."""
        if self.matched is not None:
            return []
        text = self._match(self._decoder.flush())
        if self.matched is None:
            text += self._matcher.flush()
        text = self._hold_space(text)
        if drop_space:
            self._forget_within(self._decoded - len(self._space), self._decoded)
        else:
            text += self._space
        self._space = ""
        if self.matched is None:
            self._passed = self._decoded + 1  # nothing is held back any more
        return self._delta(text)

    def _match(self, text: str) -> str:
        """`text` without line breaks at the section's start, as far as no stop string may begin in it."""
        if self._trim_start:
            trimmed = text.lstrip("\r\n")
            self._passed += len(text) - len(trimmed)
            self._forget_within(0, self._passed)
            self._trim_start = not trimmed
            text = trimmed
        shown = self._matcher.feed(text)
        self._passed += len(shown)
        return shown

    def _forget_within(self, start: int, stop: int) -> None:
        """Text that is not shown: nor are the tokens that lie in it whole."""
        self._entries = [e for e in self._entries if not (start <= e.start < e.stop <= stop)]

    def _hold_space(self, text: str) -> str:
        if not self._trim_end:
            return text
        text = self._space + text
        if self.matched is not None:
            self._space = ""
            return text
        shown = text.rstrip()
        self._space = text[len(shown) :]
        return shown

    def _delta(self, text: str) -> list[TextDelta]:
        border = self._passed - len(self._space)
        count = sum(1 for placed in self._entries if placed.start < border)
        entries = tuple(placed.entry for placed in self._entries[:count])
        del self._entries[:count]
        return [TextDelta(self._kind, text, entries)] if text or entries else []
