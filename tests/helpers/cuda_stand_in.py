"""What `torch.cuda` does for a benchmark, on a machine without a GPU: its rules, not its speed.

Kernels run in Triton's interpreter when they are launched, or when a graph that recorded them is replayed;
torch's own work is done at once, also while it is recorded.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from capture_guard import CaptureGuard
from triton.runtime.interpreter import GridExecutor

REAL = torch.cuda
Launch = Callable[[], None]


class StandIn:
    """Replaces what benchmarks use of `torch.cuda`; calls that the real functions would not take fail.

    Attributes:
        recorded, replayed: graphs.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.recorded = self.replayed = 0
        self._capture: Graph | None = None
        self._clock = 0
        stream = Stream(self)
        real_empty, real_launch = torch.empty, GridExecutor.__call__

        def empty(*args: Any, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
            assert not (pin_memory and self._capture), "pinned memory is not allocated in a graph"
            return real_empty(*args, **kwargs)

        def launch(executor: GridExecutor, *args: Any, **kwargs: Any) -> None:
            def run() -> None:
                real_launch(executor, *args, **kwargs)

            run() if self._capture is None else self._capture.launches.append(run)

        patch.setattr(torch, "empty", empty)
        patch.setattr(GridExecutor, "__call__", launch)
        for name, replacement in {
            "synchronize": self.synchronize,
            "current_stream": lambda device=None: stream,
            "set_stream": lambda stream: None,  # there is one
            "Stream": lambda device=None, priority=0: Stream(self),
            "stream": lambda stream: _nothing(),
            "Event": lambda **options: Event(self, **options),
            "CUDAGraph": lambda: Graph(self),
            "graph": self.graph,
            "graph_pool_handle": lambda: (0, 1),
        }.items():
            patch.setattr(torch.cuda, name, _checked(name, replacement))

    def synchronize(self, device: Any = None) -> None:
        """All that was recorded has come."""
        del device
        assert self._capture is None, "a stream that is recorded cannot be waited for"
        self.seen = self._clock

    seen = 0

    def tick(self) -> int:
        """The next point in what the device has to do."""
        self._clock += 1
        return self._clock

    @contextmanager
    def graph(
        self, cuda_graph: Graph, pool: Any = None, stream: Any = None, capture_error_mode: str = "global"
    ) -> Iterator[None]:
        """Record launches; the host may not look at the device meanwhile."""
        del pool, stream
        assert capture_error_mode in {"global", "thread_local", "relaxed"}
        assert self._capture is None, "graphs are recorded one at a time"
        self._capture, self.recorded = cuda_graph, self.recorded + 1
        try:
            with CaptureGuard():
                yield
        finally:
            self._capture = None

    @property
    def is_capturing(self) -> bool:
        """Whether a graph is recorded."""
        return self._capture is not None


class Graph:
    """A recorded one."""

    def __init__(self, cuda: StandIn) -> None:
        self.launches: list[Launch] = []
        self._cuda = cuda

    def replay(self) -> None:
        """All launches, in their order."""
        self._cuda.replayed += 1
        for launch in self.launches:
            launch()


class Event:
    """A point in a stream; its time may be asked for once somebody has waited for it."""

    def __init__(self, cuda: StandIn, *, enable_timing: bool = False) -> None:
        self._cuda = cuda
        self._timed = enable_timing
        self._at: int | None = None
        self._seconds = 0.0

    def record(self, stream: Any = None) -> None:
        """Here."""
        del stream
        assert not (self._timed and self._cuda.is_capturing), "a recorded event has no time"
        self._at, self._seconds = self._cuda.tick(), time.perf_counter()

    def synchronize(self) -> None:
        """Wait for it, and so for all before it."""
        assert self._at is not None, "the event was not recorded"
        assert not self._cuda.is_capturing
        self._cuda.seen = max(self._cuda.seen, self._at)

    def elapsed_time(self, end_event: Event) -> float:
        """Milliseconds."""
        for event in (self, end_event):
            assert event._timed, "the event was made without enable_timing"
            assert event._at is not None, "the event was not recorded"
            assert event._at <= self._cuda.seen, "nobody has waited for the event"
        return (end_event._seconds - self._seconds) * 1e3


class Stream:
    """Everything on it is done at once."""

    def __init__(self, cuda: StandIn) -> None:
        self._cuda = cuda

    def record_event(self, event: Event | None = None) -> Event:
        """A mark of now."""
        event = event or Event(self._cuda)
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        """Only what was recorded can be waited for."""
        assert event._at is not None, "the event was not recorded"

    def synchronize(self) -> None:
        """Wait for all of it."""
        self._cuda.synchronize()


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def _checked(name: str, replacement: Callable[..., Any]) -> Callable[..., Any]:
    """The replacement, called with what the real one's signature allows."""
    real = getattr(torch.cuda, name)
    call = real.__new__ if inspect.isclass(real) and "__init__" not in vars(real) else real
    signature = inspect.signature(call)
    takes_class = call is not real

    def checked(*args: Any, **kwargs: Any) -> Any:
        signature.bind(*((real, *args) if takes_class else args), **kwargs)
        return replacement(*args, **kwargs)

    return checked
