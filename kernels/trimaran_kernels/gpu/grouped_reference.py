"""What `grouped_experts` must compute, in plain torch; also the way of devices without Triton."""

from __future__ import annotations

import torch
from torch import Tensor

from trimaran_kernels.gpu.grouped_routing import slots_of
from trimaran_kernels.gpu.grouped_stack import ExpertStack
from trimaran_kernels.gpu.reference import expand_reference, linear_reference


def grouped_reference(
    x: Tensor, ids: Tensor, weights: Tensor, slots: Tensor, stack: ExpertStack, out: Tensor | None = None
) -> Tensor:
    """As `grouped_experts`, in float32, with no rounding between; one slot after the other."""
    by_place = slots_of(ids, slots)
    parts = torch.zeros(*ids.shape, x.shape[1], dtype=torch.float32, device=x.device)
    for slot in sorted(set(by_place.flatten().tolist()) - {-1}):
        gate, up, down = stack.expert(slot)
        token, place = torch.where(by_place == slot)
        hidden = linear_reference(x[token], gate, up)
        parts[token, place] = hidden @ expand_reference(down).T * weights[token, place, None]
    y = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for choice in range(ids.shape[1]):
        y += parts[:, choice]
    return y if out is None else out.add_(y)
