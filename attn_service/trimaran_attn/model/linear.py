"""Matrices: the file's quantised bits, or expanded once."""

from __future__ import annotations

from typing import Protocol

import torch
import trimaran_kernels
from torch import Tensor
from torch.nn.functional import linear

from trimaran_attn.weights import QuantTensor


class Linear(Protocol):
    """y = x·Wᵀ."""

    def __call__(self, x: Tensor) -> Tensor:
        """x: [T, in] → [T, out], in x's device and type."""
        ...


class DenseLinear:
    """An expanded matrix: the reference, and what a GPU computes with.

    Args:
        weight: [out, in]; x must have its device, and is converted to its type.
    """

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight

    def __call__(self, x: Tensor) -> Tensor:
        """x: [T, in] → [T, out]."""
        return linear(x.to(self._weight.dtype), self._weight).to(x.dtype)


class QuantLinear:
    """A matrix that stays in the file's encoding and computes from it, on the CPU with float32 activations.

    Args:
        weight: [out, in].
        pool: the threads that share the work.
    """

    def __init__(self, weight: QuantTensor, pool: trimaran_kernels.ThreadPool) -> None:
        self._weight = weight
        self._pool = pool

    def __call__(self, x: Tensor) -> Tensor:
        """x: [T, in] float32 → [T, out] float32."""
        out = torch.empty(len(x), self._weight.shape[0])
        raw, kind = self._weight.raw, int(self._weight.type)
        trimaran_kernels.linear(self._pool, kind, raw, x.contiguous().numpy(), out.numpy())
        return out
