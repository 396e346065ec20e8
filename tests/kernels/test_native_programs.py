"""The C++ test programs, which `make sanitize` and `make sanitize-threads` build and run, still compile."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

KERNELS = Path(__file__).parents[2] / "kernels"
COMPILER = shutil.which(os.environ.get("CXX", "c++"))
EMULATED = set((KERNELS / "tests").glob("emulated*_test.cpp"))  # built by test_emulated.py
PROGRAMS = sorted(set((KERNELS / "tests").glob("*_test.cpp")) - EMULATED)


def test_the_programs_are_built_by_name() -> None:
    """CMakeLists.txt lists them: one that is missing there would never run."""
    text = (KERNELS / "CMakeLists.txt").read_text()
    loops = [line.strip() for line in text.splitlines() if line.strip().startswith("foreach(name ")]
    names = [name for loop in loops for name in loop.removeprefix("foreach(name ").rstrip(")").split()]
    assert {f"{name}_test.cpp" for name in names} == {path.name for path in {*PROGRAMS, *EMULATED}}


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_a_program_compiles(path: Path) -> None:
    assert COMPILER is not None
    options = ["-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", "-I", KERNELS / "csrc"]
    run = subprocess.run([COMPILER, *options, path], check=False, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
