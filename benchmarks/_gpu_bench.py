"""What a section of gpu-check works with: the device, the sizes, and where its results go."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
import triton
from _gpu_messages import Failed, Figure, Message, Skipped


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

    def check(self, case: str, error: float, limit: float) -> None:
        """A comparison with a reference: it fails if the error is beyond what rounding explains, or NaN."""
        value = error if math.isfinite(error) else None
        self._emit(
            Figure(case=f"check {case}", value=value, unit="rel. error", peer="allowed", peer_value=limit)
        )
        if not error <= limit:
            self.fail(f"{case} (error {error:.2g}, allowed {limit:.2g})")

    def fail(self, what: str) -> None:
        """Something is wrong; the section goes on."""
        self._emit(Failed(what))

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
        """Measure a call, in µs, against the larger of two times: its bytes' and its operations'."""
        floor = max(nbytes / self.ceilings.copy, operations / self.ceilings.product)
        self.row(case, seconds_of(call) * 1e6, "us", floor=floor * 1e6)


def seconds_of(call: Callable[[], object]) -> float:
    """Median of many runs, captured one after the other in a CUDA graph: no launch from Python is in it.

    Nothing is cleared between the runs: callers rotate inputs that would stay in the L2 cache.
    """
    return float(triton.testing.do_bench_cudagraph(call, rep=30, return_mode="median")) / 1e3


def _copy_rate(device: torch.device) -> float:
    source = torch.randn(1 << 29, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds_of(lambda: target.copy_(source))


def _product_rate(device: torch.device) -> float:
    a, b = (torch.randn(8192, 8192, device=device).bfloat16() for _ in range(2))
    return 2 * 8192**3 / seconds_of(lambda: a @ b)
