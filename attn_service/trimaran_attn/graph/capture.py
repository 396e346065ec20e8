"""Recording what a function launches on a GPU, and launching all of it again at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from trimaran_attn.placement import entered

Body = Callable[[], Tensor]
Replay = Callable[[], Tensor]
"""Does what was recorded, on the memory that it was recorded with; the result is always the same tensor."""


class Recorder(Protocol):
    """Records bodies: functions of tensors that stay where they are."""

    def record(self, body: Body, device: torch.device) -> Replay:
        """Record a device's body that has run before; RuntimeError: something in it cannot be recorded."""
        ...


class CudaRecorder:
    """CUDA graphs. A device's share a pool of memory: one is replayed at a time, its result used at once.

    Args:
        devices: that compute.
    """

    def __init__(self, *devices: torch.device) -> None:
        # Of each device its own stream: torch's default one belongs to whichever device came first.
        self._pools = {device: torch.cuda.graph_pool_handle() for device in devices}
        self._streams = {device: _stream_on(device) for device in devices}

    def record(self, body: Body, device: torch.device) -> Replay:
        """See `Recorder.record`."""
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(device)
        # Other threads (heartbeats, sockets) may do what they like meanwhile.
        with (
            entered(device),
            _stream_kept(device),
            torch.cuda.graph(
                graph,
                pool=self._pools[device],
                stream=self._streams[device],
                capture_error_mode="thread_local",
            ),
        ):
            result = body()

        def replay() -> Tensor:
            with entered(device):
                graph.replay()
            return result

        return replay


@contextmanager
def _stream_kept(device: torch.device) -> Iterator[None]:
    """Within, the current stream may change: torch leaves the thread on its own when a capture breaks off."""
    before = torch.cuda.current_stream(device)
    try:
        yield
    finally:
        torch.cuda.set_stream(before)


def _stream_on(device: torch.device) -> torch.cuda.Stream:
    stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return stream
