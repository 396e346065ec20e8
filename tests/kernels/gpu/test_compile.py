"""The kernels through Triton's compiler and ptxas, for GPUs that need not be here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HELPERS = Path(__file__).parents[2] / "helpers"
SHARED_MEMORY = {89: 99 << 10, 90: 227 << 10}  # bytes that one program may use


@pytest.mark.parametrize("capability", SHARED_MEMORY)
def test_kernels_compile(capability):
    """Within the GPU's shared memory, without spilling much, the multiplications on tensor cores."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([*sys.path, str(HELPERS)])
    command = [
        sys.executable,
        HELPERS / "compile_ahead.py",
        "--capability",
        str(capability),
        "--only",
        "Q5_K",
    ]
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=150
    )
    assert result.returncode == 0, result.stderr[-2000:]
    kernels = [json.loads(line) for line in result.stdout.splitlines()]
    assert {kernel["kernel"] for kernel in kernels} == {"gemv_kernel", "gemm_kernel", "expand_kernel"}
    for kernel in kernels:
        assert kernel["shared"] <= SHARED_MEMORY[capability], kernel
        assert kernel["spilled"] <= 64, kernel
        assert kernel["kernel"] != "gemm_kernel" or kernel["mma"] > 0, kernel
