"""Matrices packed for the CPU: the file's bits in another order, multiplied with int8 activations."""

from __future__ import annotations

import numpy as np
import torch
import trimaran_kernels
from numpy.typing import NDArray
from torch import Tensor
from trimaran_kernels import HugePages, ThreadPool

from trimaran_attn.model.linear import Linear, QuantLinear, matrix_path
from trimaran_attn.registry import Site
from trimaran_attn.weights import QuantTensor

_MAX_TOKENS = 1024  # of one kernel call: bounds its scratch memory


class PackedLinear:
    """y = x·Wᵀ with x rounded to int8, 16 values to a scale.

    Args:
        weight: [out, in], of a type and width that can be packed; it is copied.
        pool: the threads that share the work.
        memory: where the copy goes.

    Attributes:
        kernel: what multiplies.

    Raises:
        KernelError: it cannot be packed; see `can_pack`.
    """

    def __init__(self, weight: QuantTensor, pool: ThreadPool, memory: HugePages) -> None:
        self.matrix = (int(weight.type), _pack(weight, pool, memory), True)
        self.shape = weight.shape
        self._pool = pool
        rows, columns = weight.shape
        kind, data, packed = self.matrix
        self.kernel = trimaran_kernels.Linear(pool, kind, data, rows, columns, packed=packed)

    def __call__(self, x: Tensor) -> Tensor:
        """x: [T, in] float32 → [T, out] float32."""
        out = torch.empty(len(x), self.kernel.rows)
        self.kernel(x.contiguous().numpy(), out.numpy())
        return out

    def mlp_with(self, up: Linear, down: Linear) -> PackedMLP | None:
        """down(silu(self(x)) × up(x)) in one kernel, if the others are packed too."""
        if isinstance(up, PackedLinear) and isinstance(down, PackedLinear):
            return PackedMLP(self, up, down, self._pool)
        return None


class PackedMLP:
    """down(silu(gate(x)) × up(x)): an expert that every token chooses, with a weight of one.

    Attributes:
        kernel: an engine of this expert, as layer 0.
    """

    def __init__(self, gate: PackedLinear, up: PackedLinear, down: PackedLinear, pool: ThreadPool) -> None:
        width, hidden = gate.shape
        self.kernel = trimaran_kernels.ExpertEngine(pool, hidden, width, 1, 1, max_tokens=_MAX_TOKENS)
        self.kernel.add_layer(0, gate.matrix, up.matrix, down.matrix, 0, 1)
        self._ids = torch.zeros(_MAX_TOKENS, 1, dtype=torch.int32)
        self._weights = torch.ones(_MAX_TOKENS, 1)

    def __call__(self, x: Tensor) -> Tensor:
        """x: [T, hidden] float32 → [T, hidden] float32."""
        out = torch.empty(x.shape)
        for start in range(0, len(x), _MAX_TOKENS):
            rows, result = x[start : start + _MAX_TOKENS].contiguous(), out[start : start + _MAX_TOKENS]
            ids, weights = self._ids[: len(rows)].numpy(), self._weights[: len(rows)].numpy()
            status = self.kernel.forward(0, rows.numpy(), ids, weights, result.numpy())
            if status != 0:
                raise MemoryError(f"no memory for {len(rows)} tokens of a feed-forward network")
        return out


def can_pack(weight: QuantTensor) -> bool:
    """Whether the type and the width have a packed layout."""
    return _packed_bytes(weight) is not None


def _packed_bytes(weight: QuantTensor) -> int | None:
    rows, columns = weight.shape
    return trimaran_kernels.packed_bytes(int(weight.type), rows, columns)


def build_packed(site: Site, pool: ThreadPool, memory: HugePages) -> Linear:
    """The module's matrix, packed into `memory` if it can be; the file's own pages are given back then."""
    path = matrix_path(site)
    weight = site.weights.quantised(path, site.shape)
    if not can_pack(weight):
        return QuantLinear(weight, pool)
    linear = PackedLinear(weight, pool, memory)
    site.weights.forget(path)
    return linear


def _pack(weight: QuantTensor, pool: ThreadPool, memory: HugePages) -> NDArray[np.uint8]:
    rows, columns = weight.shape
    size = _packed_bytes(weight)
    packed = memory.take(size or 0)
    trimaran_kernels.pack(pool, int(weight.type), weight.raw, rows, columns, packed)
    return packed
