"""Launches of the kernels for experts on the GPU, as `gpu_launches` has them for the others."""

from __future__ import annotations

from collections.abc import Callable

import torch
from trimaran.gguf import GGMLType
from trimaran_kernels.gpu.grouped import grouped_experts
from trimaran_kernels.gpu.grouped_stack import ExpertStack

HIDDEN, WIDE, EXPERTS, TOP_K = 7168, 2048, 256, 8
_TYPES = (GGMLType.Q4_K, GGMLType.Q4_K, GGMLType.Q6_K)


def expert_launches() -> dict[str, Callable[[], object]]:
    """By name: some tokens through eight experts of DeepSeek-V3's size."""
    cases: dict[str, Callable[[], object]] = {}
    stack = ExpertStack.empty(8, _TYPES, HIDDEN, WIDE, torch.device("cpu"))
    for n in (1, 16, 40, 512, 65536):
        cases[f"experts Q4_K Q6_K {n}"] = _launch(n, stack)
    for type_ in (GGMLType.IQ4_XS, GGMLType.Q5_K, GGMLType.Q8_0):
        stack = ExpertStack.empty(2, (type_,) * 3, HIDDEN, WIDE, torch.device("cpu"))
        for n in (1, 512):
            cases[f"experts {type_.name} {n}"] = _launch(n, stack)
    return cases


def _launch(n: int, stack: ExpertStack) -> Callable[[], object]:
    x = torch.empty(n, HIDDEN, dtype=torch.bfloat16)
    ids = torch.zeros(n, TOP_K, dtype=torch.int32)
    slots = torch.zeros(EXPERTS, dtype=torch.int32)
    return lambda: grouped_experts(x, ids, torch.zeros(n, TOP_K), slots, stack)
