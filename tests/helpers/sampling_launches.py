"""Sampling on the GPU, launched as for DeepSeek-V3's vocabulary."""

from __future__ import annotations

from collections.abc import Callable

import torch
from trimaran_kernels.gpu.sampling import draw
from trimaran_kernels.gpu.sampling_inputs import DrawInputs

ROWS, VOCAB = 16, 129280


def sampling_launches() -> dict[str, Callable[[], object]]:
    logits, out = torch.empty(ROWS, VOCAB), torch.empty(ROWS, dtype=torch.int32)
    wanted = DrawInputs(
        torch.empty(ROWS),
        torch.empty(ROWS, dtype=torch.int32),
        torch.empty(ROWS, dtype=torch.float64),
        torch.empty(ROWS),
        torch.empty(ROWS, dtype=torch.float64),
    )
    return {"sampling draw": lambda: draw(logits, wanted, out)}
