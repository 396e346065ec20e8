"""DeepSeek's tool calls, parsed while they stream.

Between the markers a call reads ``function<｜tool▁sep｜>NAME`` + a fenced json block (V3, R1) or
``NAME<｜tool▁sep｜>{…}`` (V3.1). What follows the separator tells the two apart.
"""

from __future__ import annotations

import re
import secrets
from enum import Enum, auto

from trimaran_gateway.output.events import Parsed, ToolCallDelta, ToolCallStart
from trimaran_gateway.text.detokenizer import Detokenizer
from trimaran_gateway.text.vocabulary import Vocabulary

_FENCE_OPEN = re.compile(r"\s*```(?:json)?[ \t]*\n")
_FENCE_CLOSE = re.compile(r"\s*`{0,3}\s*\Z")


class _State(Enum):
    OUTSIDE = auto()  # between two calls
    HEAD = auto()  # before the separator
    NAME = auto()  # after the separator, until it is clear what follows
    FENCE = auto()  # after the name, before the arguments
    ARGUMENTS = auto()


class ToolCallParser:
    """Turns the tokens between `calls_begin` and `calls_end` into events.

    Attributes:
        completed: calls that ended with their end marker.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._markers = vocabulary.markers
        self._state = _State.OUTSIDE
        self._index = -1
        self._decoder = Detokenizer(vocabulary)
        self._buffer = self._head = ""
        self._has_arguments = False
        self.completed = 0

    def feed(self, token: int) -> list[Parsed]:
        """What `token` adds."""
        markers = self._markers
        if token == markers.call_begin:
            events = self.close()
            self._state = _State.HEAD
            self._reset()
            return events
        if token == markers.tool_sep and self._state is _State.HEAD:
            self._head, self._buffer, self._state = self._buffer.strip(), "", _State.NAME
            return []
        if token == markers.call_end:
            self.completed += self._state is not _State.OUTSIDE
            return self.close()
        if self._state is _State.OUTSIDE:
            return []
        self._buffer += self._decoder.feed(token)
        return self._advance()

    def close(self) -> list[Parsed]:
        """Ends the call that is open, if one is: its last text comes out, without the closing fence."""
        state, self._state = self._state, _State.OUTSIDE
        if state in (_State.OUTSIDE, _State.HEAD):
            return []
        events: list[Parsed] = []
        if state is _State.NAME:
            events.append(self._start(self._buffer.strip() or self._head))
            self._buffer = ""
        rest = _FENCE_CLOSE.sub("", self._buffer)
        if not self._has_arguments and not rest.strip():
            rest = "{}"
        return [*events, *self._arguments(rest)]

    def _reset(self) -> None:
        self._decoder = Detokenizer(self._vocabulary)
        self._buffer = self._head = ""
        self._has_arguments = False

    def _advance(self) -> list[Parsed]:
        events: list[Parsed] = []
        if self._state is _State.NAME:
            events += self._find_name()
        if self._state is _State.FENCE:
            self._skip_fence()
        if self._state is _State.ARGUMENTS:
            events += self._stream_arguments()
        return events

    def _find_name(self) -> list[Parsed]:
        text = self._buffer.lstrip()
        if text.startswith("{"):
            self._buffer, self._state = text, _State.ARGUMENTS
            return [self._start(self._head)]
        name, line_break, rest = text.partition("\n")
        if not line_break:
            return []
        self._buffer, self._state = rest, _State.FENCE
        return [self._start(name.strip())]

    def _skip_fence(self) -> None:
        fence = _FENCE_OPEN.match(self._buffer)
        if fence:
            self._buffer = self._buffer[fence.end() :]
        elif not self._buffer.lstrip().startswith("{"):
            return
        self._state = _State.ARGUMENTS

    def _stream_arguments(self) -> list[Parsed]:
        """All but what may be the closing fence."""
        closing = _FENCE_CLOSE.search(self._buffer)
        cut = closing.start() if closing else len(self._buffer)
        text, self._buffer = self._buffer[:cut], self._buffer[cut:]
        return self._arguments(text)

    def _start(self, name: str) -> ToolCallStart:
        self._index += 1
        return ToolCallStart(self._index, f"call_{secrets.token_hex(12)}", name)

    def _arguments(self, text: str) -> list[Parsed]:
        if not text:
            return []
        self._has_arguments = True
        return [ToolCallDelta(self._index, text)]
