"""Compile every GPU kernel with real shapes for a GPU that need not be here, and say what it takes there.

    python tests/helpers/compile_ahead.py --capability 90

Triton's own compiler and ptxas run; only the launch is left out. Prints one JSON line a kernel: registers,
spilled bytes, shared memory and how often its machine code has tensor-core instructions. `--check` holds them
against `compile_limits.py`; exit code 1 if anything exceeds them.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


class AbsentGpu:
    """Answers Triton's questions about the current device."""

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _device: int) -> int:
        return 0


@dataclass(frozen=True)
class Compiled:
    """What ptxas made of one launch.

    `mma` counts tensor-core instructions, `wide` loads of 16 bytes, `loop` what the longest loop has.
    """

    case: str
    kernel: str
    grid: tuple[int, ...]
    registers: int
    spilled: int
    shared: int
    mma: int
    wide: int
    instructions: int
    loop: int


class AheadCompiler:
    """Turns launches into compilations.

    Args:
        capability: e.g. 90 for sm_90.
    """

    def __init__(self, capability: int) -> None:
        self.results: list[Compiled] = []
        self._case = ""
        # By machine code: a case may launch one kernel a hundred times.
        inspected: dict[bytes, Compiled] = {}
        driver.set_active(AbsentGpu(capability))  # type: ignore[arg-type]
        run = JITFunction.run
        this = self

        def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
            kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
            cubin = kernel.asm["cubin"]
            if cubin not in inspected:
                inspected[cubin] = _inspect(this._case, kernel, tuple(grid))
            result = replace(inspected[cubin], case=this._case, grid=tuple(grid))
            if result not in this.results:
                this.results.append(result)
                print(json.dumps(asdict(result)), flush=True)
            return kernel

        JITFunction.run = compile_only

    def compile(self, case: str, launch: Callable[[], object]) -> None:
        """Run code that launches kernels; its tensors are on the CPU and their contents do not matter."""
        self._case = case
        launch()


def _inspect(case: str, kernel: Any, grid: tuple[int, ...]) -> Compiled:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(kernel.asm["cubin"])
        usage = _cuobjdump("-res-usage", file.name)
        sass = _cuobjdump("-sass", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", usage)
    assert found is not None, usage
    return Compiled(
        case=case,
        kernel=kernel.metadata.name,
        grid=grid,
        registers=int(found[1]),
        spilled=int(found[2]) + int(found[3]),
        shared=kernel.metadata.shared,
        mma=len(re.findall(r"\b[HQI]G?MMA\b", sass)),
        wide=len(re.findall(r"\bLDG(?:STS)?\.[A-Z0-9.]*128\b", sass)),
        instructions=len(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/", sass, re.MULTILINE)),
        loop=_longest_loop(sass),
    )


def _longest_loop(sass: str) -> int:
    """Instructions between a branch back and where it goes; 16 bytes each."""
    branches = re.findall(r"/\*([0-9a-f]{4,})\*/.*\bBRA.* (?:`\(.*\)|0x([0-9a-f]+)) ?;", sass)
    spans = [int(at, 16) - int(target or "0", 16) for at, target in branches if target]
    return max((span // 16 + 1 for span in spans if span > 0), default=0)


def _cuobjdump(*arguments: str) -> str:
    return subprocess.run([CUOBJDUMP, *arguments], capture_output=True, text=True, check=True).stdout


def main() -> None:
    from compile_limits import complaints, missing_kernels
    from gpu_launches import launches

    parser = argparse.ArgumentParser()
    parser.add_argument("--capability", type=int, default=90)
    parser.add_argument("--only", default="", help="cases that fit this regular expression")
    parser.add_argument("--check", action="store_true", help="fail if a kernel exceeds its limits")
    options = parser.parse_args()
    torch.set_num_threads(1)
    compiler = AheadCompiler(options.capability)
    for case, launch in launches().items():
        if re.search(options.only, case):
            compiler.compile(case, launch)
    if options.check:
        wrong = [line for result in compiler.results for line in complaints(result, options.capability)]
        if not options.only:
            wrong += [
                f"{name}: no case" for name in sorted(missing_kernels(r.kernel for r in compiler.results))
            ]
        sys.exit("\n".join(wrong) or 0)


if __name__ == "__main__":
    main()
