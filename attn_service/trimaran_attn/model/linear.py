"""Matrices: the file's quantised bits, or expanded once."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
import trimaran_kernels
from torch import Tensor
from torch.nn.functional import linear, silu

from trimaran_attn.registry import Site
from trimaran_attn.weights import QuantTensor


class Linear(Protocol):
    """y = x·Wᵀ."""

    def __call__(self, x: Tensor) -> Tensor:
        """x: [T, in] → [T, out], in x's device and type."""
        ...


class DenseLinear:
    """An expanded matrix: the reference, and a GPU's way with weights that are not quantised.

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

    Attributes:
        kernel: what multiplies.
    """

    def __init__(self, weight: QuantTensor, pool: trimaran_kernels.ThreadPool) -> None:
        rows, columns = weight.shape
        self.kernel = trimaran_kernels.Linear(pool, int(weight.type), weight.raw, rows, columns)

    def __call__(self, x: Tensor) -> Tensor:
        """x: [T, in] float32 → [T, out] float32."""
        out = torch.empty(len(x), self.kernel.rows)
        self.kernel(x.contiguous().numpy(), out.numpy())
        return out


@runtime_checkable
class NativeLinear(Protocol):
    """A matrix of the CPU's kernels, which other kernels can use."""

    kernel: trimaran_kernels.Linear


@runtime_checkable
class Fusable(Protocol):
    """A matrix that can share one kernel with another."""

    def swiglu_with(self, up: Linear) -> Linear | None:
        """silu(self(x)) × up(x), or None if it does not fuse with `up`."""
        ...


class SwiGLU:
    """silu(gate(x)) × up(x)."""

    def __init__(self, gate: Linear, up: Linear) -> None:
        self._gate = gate
        self._up = up

    def __call__(self, x: Tensor) -> Tensor:
        """x: [T, in] → [T, width]."""
        return silu(self._gate(x)).mul_(self._up(x))


def swiglu(gate: Linear, up: Linear) -> Linear:
    """silu(gate(x)) × up(x), fused where the two can be."""
    fused = gate.swiglu_with(up) if isinstance(gate, Fusable) else None
    return fused or SwiGLU(gate, up)


def matrix_path(site: Site) -> str:
    """The module's own tensor; a model without a head of its own uses the embeddings' table."""
    tied = site.path == "lm_head" and not site.weights.has(site.path)
    return "model.embed_tokens" if tied else site.path
