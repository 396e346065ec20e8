"""How bytes get from host memory to the device while it computes."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor


class Copier(Protocol):
    """Copies beside the computation. A mark is a point in what the device has to do; None is long past."""

    def host_buffer(self, nbytes: int) -> Tensor:
        """uint8 on the host, from which copies are fast."""
        ...

    def copy(self, source: Tensor, target: Tensor, after: Any) -> Any:
        """Begin to copy when the mark is reached; a mark of its end."""
        ...

    def mark(self) -> Any:
        """Reached when all that was launched so far has been computed."""
        ...

    def hold(self, mark: Any) -> None:
        """What is launched from now on waits for the mark."""
        ...

    def settle(self, mark: Any) -> None:
        """The calling thread waits for the mark."""
        ...


class CudaCopier:
    """Pinned memory and a stream of its own.

    Args:
        device: where copies go.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def host_buffer(self, nbytes: int) -> Tensor:
        """See `Copier`."""
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)

    def copy(self, source: Tensor, target: Tensor, after: torch.cuda.Event | None) -> torch.cuda.Event:
        """See `Copier`."""
        with torch.cuda.stream(self._stream):
            if after is not None:
                self._stream.wait_event(after)
            target.copy_(source, non_blocking=True)
            return _event_on(self._stream)

    def mark(self) -> torch.cuda.Event:
        """See `Copier`."""
        return _event_on(torch.cuda.current_stream(self._device))

    def hold(self, mark: torch.cuda.Event | None) -> None:
        """See `Copier`."""
        if mark is not None:
            torch.cuda.current_stream(self._device).wait_event(mark)

    def settle(self, mark: torch.cuda.Event | None) -> None:
        """See `Copier`."""
        if mark is not None:
            mark.synchronize()


def _event_on(stream: torch.cuda.Stream) -> torch.cuda.Event:
    event: torch.cuda.Event = stream.record_event()
    return event
