"""Recording what a function launches on a GPU, and launching all of it again at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

Body = Callable[[], Tensor]
Replay = Callable[[], Tensor]
"""Does what was recorded, on the memory that it was recorded with; the result is always the same tensor."""


class Recorder(Protocol):
    """Records bodies: functions of tensors that stay where they are."""

    def record(self, body: Body) -> Replay:
        """Record a body that has run before; raises RuntimeError if something in it cannot be recorded."""
        ...


class CudaRecorder:
    """CUDA graphs, which share one pool of memory: one is replayed at a time, and its result used at once.

    Args:
        device: that computes.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, body: Body) -> Replay:
        """See `Recorder.record`."""
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(self._device)
        # Other threads (heartbeats, sockets) may do what they like meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            result = body()

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay
