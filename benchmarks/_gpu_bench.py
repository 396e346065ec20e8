"""What a section of gpu-check works with: the device, the sizes, and where its results go."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
import triton
from _gpu_messages import Failed, Figure, Message, Skipped

COPIED_VALUES = 1 << 29
"""Of float32, for the copy rate."""
PRODUCT_SIZE = 8192
"""Rows and columns, for the product rate."""


@dataclass(frozen=True)
class Ceilings:
    """Bytes a second of a copy, read and written, and operations a second of a bf16 product."""

    copy: float
    product: float


class Bench:
    """One worker's run.

    Args:
        device: the GPU, or the CPU under the interpreter.
        emit: takes the results, one after the other, as they come.

    Attributes:
        tiny: whether this is the interpreter, where a problem must be small, and nothing is measured.
    """

    def __init__(self, device: torch.device, emit: Callable[[Message], None]) -> None:
        self.device = device
        self.tiny = device.type == "cpu"
        self._emit = emit

    @cached_property
    def ceilings(self) -> Ceilings:
        """This GPU's own, measured at first use: what every time is held against."""
        return Ceilings(_copy_rate(self.device), _product_rate(self.device))

    def check(self, case: str, error: float, limit: float, unit: str = "rel. error") -> None:
        """A comparison with a reference: it fails if the error is beyond what rounding explains, or NaN."""
        value = error if math.isfinite(error) else None
        self._emit(Figure(case=f"check {case}", value=value, unit=unit, peer="allowed", peer_value=limit))
        if not error <= limit:
            self.fail(f"{case} (error {error:.2g}, allowed {limit:.2g})")

    def fail(self, what: str) -> None:
        """Something is wrong; the section goes on."""
        self._emit(Failed(what))

    @contextmanager
    def part(self, what: str) -> Iterator[None]:
        """A part of a section that may break alone: that is told, and the next part goes on.

        A fault on the GPU leaves nothing to go on with: then the section breaks too.
        """
        try:
            yield
        except Exception as error:
            if not self.tiny:
                torch.cuda.synchronize(self.device)  # raises again if the GPU itself is at fault
            traceback.print_exc()
            self.fail(f"{what}: {reason_of(error)}")

    def skip(self, what: str, why: str) -> None:
        """Something cannot be done on this machine."""
        self._emit(Skipped(what, why))

    def row(
        self,
        case: str,
        value: float,
        unit: str,
        *,
        floor: float | None = None,
        higher_is_better: bool = False,
    ) -> None:
        """A figure, as `Report.row` takes it."""
        self._emit(Figure(case=case, value=value, unit=unit, floor=floor, higher_is_better=higher_is_better))

    def time(self, case: str, call: Callable[[], object], *, nbytes: int, operations: int = 0) -> None:
        """Measure a call, in µs, against the larger of two times: its bytes' and its operations'.

        One that breaks is told, and is a part of its own.
        """
        with self.part(case):
            floor = max(nbytes / self.ceilings.copy, operations / self.ceilings.product)
            self.row(case, seconds_of(call) * 1e6, "us", floor=floor * 1e6)


def reason_of(error: BaseException) -> str:
    """One line: the error's type, its last line, and where it was raised. Compilers put the cause last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {lines[-1] if lines else ''}{where}"


def seconds_of(call: Callable[[], object]) -> float:
    """Median of many runs, captured one after the other in a CUDA graph: no launch from Python is in it.

    Nothing is cleared between the runs: callers rotate inputs that would stay in the L2 cache.
    """
    return float(triton.testing.do_bench_cudagraph(call, rep=30, return_mode="median")) / 1e3


class Stopwatch:
    """Time on a device, between what was launched before it was made and before it was stopped.

    Args:
        device: whose current stream is looked at; the host's clock for a CPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._began = self._mark()
        self._ended: torch.cuda.Event | float | None = None

    def stop(self) -> None:
        """Nothing waits for the device here."""
        self._ended = self._mark()

    def seconds(self) -> float:
        """Waits until the device has come so far."""
        if isinstance(self._began, float):
            assert isinstance(self._ended, float)
            return self._ended - self._began
        assert isinstance(self._ended, torch.cuda.Event)
        self._ended.synchronize()
        return float(self._began.elapsed_time(self._ended)) / 1e3

    def _mark(self) -> torch.cuda.Event | float:
        if self._device.type == "cpu":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event


def _copy_rate(device: torch.device) -> float:
    source = torch.randn(COPIED_VALUES, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds_of(lambda: target.copy_(source))


def _product_rate(device: torch.device) -> float:
    n = PRODUCT_SIZE
    a, b = (torch.randn(n, n, device=device).bfloat16() for _ in range(2))
    return 2 * n**3 / seconds_of(lambda: a @ b)
