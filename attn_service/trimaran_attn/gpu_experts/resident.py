"""One layer's experts in this process's device memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from trimaran.gpu_weights import gpu_type
from trimaran_kernels.gpu.grouped_routing import slots_of
from trimaran_kernels.gpu.grouped_stack import ExpertStack
from trimaran_kernels.gpu.load import load_matrix
from trimaran_kernels.gpu.matrix import QuantMatrix

from trimaran_attn.gpu_experts.stream_cost import ExpertCost
from trimaran_attn.registry import Site
from trimaran_attn.weights import QuantTensor


class Compute(Protocol):
    """`grouped_experts`, or its reference."""

    def __call__(  # noqa: PLR0917 as `grouped_experts`
        self,
        x: Tensor,
        ids: Tensor,
        weights: Tensor,
        slots: Tensor,
        stack: ExpertStack,
        out: Tensor | None = None,
    ) -> Tensor:
        """As there."""
        ...


@dataclass(frozen=True)
class ExpertFile:
    """A layer's experts in the model file.

    Attributes:
        layer: its number.
        n_experts: how many.
        shapes: of an expert's gate, up and down.
        tensors: all experts' gates, ups and downs.
    """

    layer: int
    n_experts: int
    shapes: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    tensors: tuple[QuantTensor, ...]

    @classmethod
    def of(cls, site: Site) -> ExpertFile:
        """Of a layer's experts; raises ModelFileError as `Weights.quantised` does."""
        moe, hidden = site.spec.moe, site.spec.hidden_size
        wide, narrow = (moe.intermediate_size, hidden), (hidden, moe.intermediate_size)
        shapes = (wide, wide, narrow)
        tensors = tuple(
            site.weights.quantised(f"{site.path}.{name}", (moe.n_experts, *shape))
            for name, shape in zip(("gate_proj", "up_proj", "down_proj"), shapes, strict=True)
        )
        return cls(site.layer, moe.n_experts, shapes, tensors)

    @property
    def cost(self) -> ExpertCost:
        """Of any one of them."""
        rows, columns = self.shapes[0]
        nbytes = sum(len(tensor.raw) for tensor in self.tensors) // self.n_experts
        return ExpertCost(nbytes, len(self.shapes) * rows * columns)

    def matrices(self, expert: int) -> list[QuantMatrix]:
        """Its gate, up and down on the CPU, in the types that a GPU computes with."""
        loaded = []
        for tensor, shape in zip(self.tensors, self.shapes, strict=True):
            raw = tensor.raw.reshape(self.n_experts, -1)[expert]
            loaded.append(load_matrix(tensor.type, raw, shape, torch.device("cpu")))
        return loaded

    def stack(self, n_slots: int, device: torch.device) -> ExpertStack:
        """Room for some of them."""
        gate, up, down = (gpu_type(tensor.type) for tensor in self.tensors)
        wide, hidden = self.shapes[0]
        return ExpertStack.empty(n_slots, (gate, up, down), hidden, wide, device)


class ResidentLayer:
    """Some experts of a layer, and how often they were used.

    Args:
        file: where their weights are.
        experts: which, one for each slot.
        device: where they go.
        compute: does the arithmetic.

    Attributes:
        experts: the expert in each slot.
        slots: int32 [experts] on the device, each expert's slot or -1.
        stack: the weights.
    """

    def __init__(
        self, file: ExpertFile, experts: Sequence[int], device: torch.device, compute: Compute
    ) -> None:
        self._file = file
        self._compute = compute
        self.layer = file.layer
        self.experts = list(experts)
        self.stack = file.stack(len(experts), device)
        self.slots = torch.full((file.n_experts,), -1, dtype=torch.int32, device=device)
        self._served = torch.zeros(file.n_experts + 1, dtype=torch.int64, device=device)
        for slot, expert in enumerate(experts):
            self._load(slot, expert)

    def here(self, ids: Tensor) -> Tensor:
        """Of ids [T, top_k], which are computed here; bool [T, top_k]."""
        return slots_of(ids, self.slots) >= 0

    def compute(self, x: Tensor, ids: Tensor, weights: Tensor, here: Tensor) -> Tensor:
        """float32 [T, hidden]: the sum over the choices that are `here`, in their order; counts them too.

        Nothing waits for the device.
        """
        counted = torch.where(here, ids + 1, 0).flatten().long()
        self._served.scatter_add_(0, counted, torch.ones_like(counted))
        return self._compute(x, ids, weights, self.slots, self.stack)

    def served(self) -> list[int]:
        """By expert, tokens computed here so far. Waits for the device."""
        counts: list[int] = self._served.tolist()
        return counts[1:]

    def exchange(self, slot: int, expert: int) -> None:
        """Another expert in a slot; no step may be under way."""
        self.slots[self.experts[slot]] = -1
        self._load(slot, expert)
        self.experts[slot] = expert

    def _load(self, slot: int, expert: int) -> None:
        self.stack.put(slot, self._file.matrices(expert))
        self.slots[expert] = slot
