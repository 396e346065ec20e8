"""Experts read from the model file, copied to the GPU and computed there, a few at a time, in two buffers.

While the GPU copies and computes one buffer's experts, this thread fills the other's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from trimaran.plan.experts import STREAMED_EXPERTS
from trimaran_kernels.gpu.grouped_stack import ExpertStack
from trimaran_kernels.gpu.matrix import QuantMatrix

from trimaran_attn.gpu_experts.resident import Compute, ExpertFile
from trimaran_attn.gpu_experts.stream_copy import Copier

_READERS = 4
"""Threads that read the file: one alone copies slower than the bus."""


@dataclass
class _Buffer:
    """Bytes of some experts on the host and on the device.

    Attributes:
        copied, consumed: marks of the copy's end, and of the device having read its side.
    """

    host: Tensor
    device: Tensor
    copied: Any = None
    consumed: Any = None


class Streamer:
    """Shared by all layers of a device; used by one thread.

    Args:
        expert_bytes: of the largest expert in the file.
        n_experts: of a layer.
        device: where they are computed.
        copier: gets them there.
        compute: does the arithmetic.
        per_buffer: experts that a buffer holds.

    Attributes:
        compute: as given.
    """

    def __init__(
        self,
        expert_bytes: int,
        n_experts: int,
        *,
        device: torch.device,
        copier: Copier,
        compute: Compute,
        per_buffer: int = STREAMED_EXPERTS,
    ) -> None:
        size = per_buffer * expert_bytes
        self._buffers = [
            _Buffer(copier.host_buffer(size), torch.empty(size, dtype=torch.uint8, device=device))
            for _ in range(2)
        ]
        self._n_experts = n_experts
        self._device = device
        self._copier = copier
        self.compute = compute
        self._per_buffer = per_buffer
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="expert-reader")

    def run(
        self, file: ExpertFile, experts: Sequence[int], x: Tensor, ids: Tensor, weights: Tensor
    ) -> Tensor:
        """float32 [T, hidden]: the sum over these experts, added up in their order.

        Args:
            file: the layer's.
            experts: which ones.
            x, ids, weights: as `Experts.submit` has them, on the device.
        """
        y = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        for stack, slots in self.stacks(file, experts):
            y = self.compute(x, ids, weights, slots, stack, y)
        return y

    def stacks(self, file: ExpertFile, experts: Sequence[int]) -> Iterator[tuple[ExpertStack, Tensor]]:
        """A few experts at a time on the device, with their slots; use them before asking for the next."""
        for number, first in enumerate(range(0, len(experts), self._per_buffer)):
            some = experts[first : first + self._per_buffer]
            buffer = self._buffers[number % 2]
            self._fill(buffer, file, some)
            self._copier.hold(buffer.copied)
            stack = _unpack(buffer.device, file, len(some))
            buffer.consumed = self._copier.mark()
            yield stack, self._slots(some)

    def _fill(self, buffer: _Buffer, file: ExpertFile, experts: Sequence[int]) -> None:
        """Read into the host's side and begin to copy: first all gates, then all ups, then all downs."""
        self._copier.settle(buffer.copied)
        target, reads, at = buffer.host.numpy(), [], 0
        for tensor in file.tensors:
            rows = tensor.raw.reshape(file.n_experts, -1)
            for expert in experts:
                reads.append(self._readers.submit(np.copyto, target[at : at + rows.shape[1]], rows[expert]))
                at += rows.shape[1]
        for read in reads:
            read.result()
        buffer.copied = self._copier.copy(buffer.host[:at], buffer.device[:at], buffer.consumed)

    def _slots(self, experts: Sequence[int]) -> Tensor:
        table = torch.full((self._n_experts,), -1, dtype=torch.int32)
        table[list(experts)] = torch.arange(len(experts), dtype=torch.int32)
        return table.to(self._device)

    def close(self) -> None:
        """End the readers."""
        self._readers.shutdown()


def _unpack(raw: Tensor, file: ExpertFile, n: int) -> ExpertStack:
    """The experts in a buffer as planes."""
    matrices, at = [], 0
    for tensor, (rows, columns) in zip(file.tensors, file.shapes, strict=True):
        nbytes = n * len(tensor.raw) // file.n_experts
        matrices.append(QuantMatrix.from_blocks(tensor.type, raw[at : at + nbytes], (n * rows, columns)))
        at += nbytes
    gate, up, down = matrices
    return ExpertStack(n, gate, up, down)
