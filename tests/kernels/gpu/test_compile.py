"""The kernels through Triton's compiler and ptxas, for GPUs that are not here (all: `make gpu-compile`)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HELPERS = Path(__file__).parents[2] / "helpers"
CASES = {
    80: "linear Q4_K (8|50)$|mla decode bf16",
    89: "linear Q5_K 16|linear Q8_0 8|experts Q4_K Q6_K 1$|mla decode fp8|mla prefill",
    90: "linear Q5_K (1|16)$|expand Q5_K|mla decode fp8|hop|small|sampling|mla store fp8",
}


@pytest.mark.slow
@pytest.mark.parametrize("capability", CASES)
def test_kernels_compile(capability):
    """Within the limits of `compile_limits.py`."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([*sys.path, str(HELPERS)])
    command = [sys.executable, HELPERS / "compile_ahead.py", "--check", "--only", CASES[capability]]
    command += ["--capability", str(capability)]
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=150
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert len(result.stdout.splitlines()) >= len(CASES[capability].split("|"))
