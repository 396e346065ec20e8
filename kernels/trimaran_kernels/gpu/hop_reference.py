"""What the hop's GPU kernels leave in memory, in torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def sent_reference(x: Tensor, *, is_bf16: bool) -> Tensor:
    """x as a slot holds it: the bits of bfloat16 (uint16), or float32."""
    return x.to(torch.bfloat16).view(torch.uint16) if is_bf16 else x.float()


def collected_reference(answers: Sequence[Tensor], n: int, out: torch.dtype) -> Tensor:
    """The shards' answers [live, hidden], as `sent_reference` gives, summed: [n, hidden], rows beyond 0."""
    hidden = answers[0].shape[1]
    total = torch.zeros(n, hidden)
    for answer in answers:
        values = answer.view(torch.bfloat16) if answer.dtype == torch.uint16 else answer
        total[: len(answer)] += values.float()
    return total.to(out)
