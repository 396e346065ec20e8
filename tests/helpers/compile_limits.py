"""What the machine code of a GPU kernel must keep to, for `compile_ahead.py`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Set
from pathlib import Path
from typing import Protocol

import trimaran_kernels.gpu

SHARED_MEMORY = {80: 163 << 10, 89: 99 << 10, 90: 227 << 10}
"""Bytes that one program may use, by capability (CUDA C Programming Guide, technical specifications)."""

GRID = (2**31 - 1, 65535, 65535)
"""Programs in each dimension of a launch (ibid.)."""

SPILLED = 32
"""Bytes a thread may keep in local memory: a few pointers outside a loop."""

SPILLING = {"gemm_kernel": 128, "split_kernel": 64, "grouped_up_kernel": 400, "grouped_down_kernel": 400}
"""Kernels that may keep more: on sm_80 and sm_89 those of many tokens do, and attention over 8-bit caches."""

MULTIPLYING = {
    "few_kernel",
    "gemm_kernel",
    "split_kernel",
    "part_kernel",
    "grouped_up_kernel",
    "grouped_down_kernel",
}
"""Kernels that must use tensor cores, for tokens of 16-bit floats."""

STREAMING = {"few_kernel", "fixed_gemv_kernel", "split_kernel", "part_kernel"}
"""Kernels that live by memory: they must load 16 bytes at a time."""

WEIGHTS_A_THREAD = 8 * 32
"""Of a step of `fixed_gemv_kernel`: rows times columns."""

INSTRUCTIONS_A_WEIGHT = 4.6
"""Of `fixed_gemv_kernel`; 5.6 is what 70 % of an H200's bandwidth leaves for 4-bit weights."""


class Facts(Protocol):
    """What `compile_ahead.Compiled` says of a kernel, as far as it matters here."""

    case: str
    kernel: str
    grid: tuple[int, ...]
    spilled: int
    shared: int
    mma: int
    wide: int
    loop: int


def complaints(kernel: Facts, capability: int) -> list[str]:
    """What is wrong with a kernel, in words; nothing if it keeps to all limits."""
    fast = "float32" not in kernel.case
    loop = INSTRUCTIONS_A_WEIGHT * WEIGHTS_A_THREAD
    wrong = {
        f"{kernel.shared} bytes of shared memory": kernel.shared > SHARED_MEMORY[capability],
        f"a grid of {kernel.grid}": any(n > most for n, most in zip(kernel.grid, GRID, strict=False)),
        f"{kernel.spilled} bytes spilled": kernel.spilled > SPILLING.get(kernel.kernel, SPILLED),
        "no tensor cores": fast and kernel.kernel in MULTIPLYING and kernel.mma == 0,
        "no loads of 16 bytes": fast and kernel.kernel in STREAMING and kernel.wide == 0,
        f"{kernel.loop} instructions in its loop": kernel.kernel == "fixed_gemv_kernel"
        and kernel.loop > loop,
    }
    return [f"{kernel.case}: {kernel.kernel}: {what}" for what, holds in wrong.items() if holds]


def missing_kernels(compiled: Iterable[str]) -> Set[str]:
    """Kernels of the package that nothing compiled."""
    sources = Path(trimaran_kernels.gpu.__file__).parent.glob("*.py")
    pattern = r"^@triton\.jit.*\ndef (\w+_kernel)\("
    names = {name for path in sources for name in re.findall(pattern, path.read_text(), re.MULTILINE)}
    return names - set(compiled)
