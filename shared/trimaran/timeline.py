"""Who did what when inside a process: spans that cost next to nothing while nobody wants them.

Times are nanoseconds of the monotonic clock, which all processes of a host share, so that the spans of
several processes fit on one timeline.
"""

from __future__ import annotations

import threading
import time
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType

from trimaran.wire import TraceSpan

MAX_SPANS = 200_000
MAX_S = 120.0
"""A recording that nobody ends is ended then."""

NO_LAYER = -1
_NOTHING: AbstractContextManager[None] = nullcontext()


class Tracer:
    """Records the spans of one process while it is asked to. Threads may share it.

    Args:
        max_spans: how many are kept; the recording ends with the last of them.
    """

    def __init__(self, max_spans: int = MAX_SPANS) -> None:
        self._max_spans = max_spans
        self._spans: list[TraceSpan] = []
        self._ends_at = 0.0
        self._steps_left: int | None = None
        self.active = False

    def start(self, steps: int | None = None) -> None:
        """Record from now on, anew.

        Args:
            steps: how many engine steps to record; None: until `stop`.
        """
        self._spans = []
        self._steps_left = steps
        self._ends_at = time.monotonic() + MAX_S
        self.active = True

    def stop(self) -> list[TraceSpan]:
        """End the recording and give up what it holds."""
        self.active = False
        spans, self._spans = self._spans, []
        return spans

    def span(self, name: str, layer: int = NO_LAYER, tokens: int = 0) -> AbstractContextManager[None]:
        """A block of code as a span of the current thread.

        Args:
            name: what it does.
            layer: of the model, if it belongs to one.
            tokens: how many it is about.
        """
        return _Recording(self, name, layer, tokens) if self.active else _NOTHING

    def step(self) -> AbstractContextManager[None]:
        """A step of the engine, as a span; the last one that was asked for ends the recording.

        A step that the recording began in the middle of does not count.
        """
        return _RecordedStep(self, "step", NO_LAYER, 0) if self.active else _NOTHING

    def end_step(self) -> None:
        """A recorded step is over."""
        if self._steps_left is not None:
            self._steps_left -= 1
        if self._steps_left == 0 or time.monotonic() > self._ends_at:
            self.active = False

    def add(self, span: TraceSpan) -> None:
        """Keep a span, also one that began while the recording was on and ends when it is over."""
        if len(self._spans) < self._max_spans:
            self._spans.append(span)
        else:
            self.active = False


class _Recording:
    """One span, from `with` to the end of the block."""

    __slots__ = ("_layer", "_name", "_start_ns", "_tokens", "_tracer")

    def __init__(self, tracer: Tracer, name: str, layer: int, tokens: int) -> None:
        self._tracer = tracer
        self._name = name
        self._layer = layer
        self._tokens = tokens

    def __enter__(self) -> None:
        self._start_ns = time.monotonic_ns()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        end_ns = time.monotonic_ns()
        thread = threading.current_thread().name
        self._tracer.add(TraceSpan(thread, self._name, self._start_ns, end_ns, self._layer, self._tokens))


class _RecordedStep(_Recording):
    """A span that counts as a step."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self._tracer.end_step()
