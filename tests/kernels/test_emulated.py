"""Kernels for CPUs that this machine need not be: their sources, compiled against emulated instructions."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

BUILD = Path(__file__).parents[2] / "kernels" / "dev_build.sh"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_wide_kernels_agree_with_the_reference():
    """AVX-512 and AMX against the portable kernels; see kernels/tests/emulated_*test.cpp."""
    env = os.environ | {"PYTHON": sys.executable, "JOBS": "2"}
    run = subprocess.run(["sh", BUILD, "emulated"], check=False, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    for what in ("kernels", "attention primitives", "attention tiles"):
        assert f"all emulated {what} passed" in run.stdout
