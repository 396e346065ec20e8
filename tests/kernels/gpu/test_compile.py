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
MULTIPLYING = {"few_kernel", "gemm_kernel", "split_kernel", "part_kernel"}
HOP = {"submit_kernel", "await_kernel", "collect_kernel"}
SMALL = {"norm_kernel", "rotate_kernel", "router_kernel", "choose_kernel"}
LINEAR = {"fixed_gemv_kernel", "sum_splits_kernel", "expand_kernel"}
KERNELS = MULTIPLYING | HOP | SMALL | LINEAR | {"merge_kernel", "draw_kernel"}
WEIGHTS_PER_STEP = 8 * 32  # of a thread of the GEMV: rows times columns
INSTRUCTIONS_PER_WEIGHT = 4.5  # Q5_K; 5.6 is what 70 % of an H200's bandwidth leaves


@pytest.mark.slow
@pytest.mark.parametrize("capability", SHARED_MEMORY)
def test_kernels_compile(capability):
    """Within the GPU's shared memory, with nothing spilled, the multiplications on tensor cores."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([*sys.path, str(HELPERS)])
    command = [
        sys.executable,
        HELPERS / "compile_ahead.py",
        "--capability",
        str(capability),
        "--only",
        "linear Q5_K (1|16)$|expand Q5_K|linear Q4_K 50|mla decode fp8|mla prefill|hop|small|sampling",
    ]
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=150
    )
    assert result.returncode == 0, result.stderr[-2000:]
    kernels = [json.loads(line) for line in result.stdout.splitlines()]
    assert {kernel["kernel"] for kernel in kernels} == KERNELS
    for kernel in kernels:
        assert kernel["shared"] <= SHARED_MEMORY[capability], kernel
        assert kernel["spilled"] <= 16, kernel
        if kernel["kernel"] == "fixed_gemv_kernel":
            assert 0 < kernel["loop"] <= INSTRUCTIONS_PER_WEIGHT * WEIGHTS_PER_STEP, kernel
        assert kernel["kernel"] not in MULTIPLYING or kernel["mma"] > 0, kernel
