"""The code books agree with the independent `gguf` package, and the C++ tables with the code books."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gguf import quants
from trimaran.gguf import iq_grids

REPOSITORY = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("grid", "reference"),
    [
        (iq_grids.IQ1_GRID, quants.IQ1_S),
        (iq_grids.IQ2_XXS_GRID, quants.IQ2_XXS),
        (iq_grids.IQ2_XS_GRID, quants.IQ2_XS),
        (iq_grids.IQ2_S_GRID, quants.IQ2_S),
        (iq_grids.IQ3_XXS_GRID, quants.IQ3_XXS),
        (iq_grids.IQ3_S_GRID, quants.IQ3_S),
    ],
)
def test_grid_values(grid: iq_grids.Grid, reference: type[quants.IQ1_S]) -> None:
    reference.init_grid()
    assert grid.values().shape == (grid.rows, grid.width)
    np.testing.assert_array_equal(grid.values(), reference.grid[0, 0])


def test_sign_masks_and_levels() -> None:
    assert iq_grids.SIGN_MASKS.tobytes() == quants.IQ2_XXS.ksigns
    assert quants.IQ4_NL.kvalues == iq_grids.IQ4_LEVELS
    assert quants.IQ1_S.delta == iq_grids.IQ1_DELTA


def test_cpp_tables_are_up_to_date() -> None:
    script = REPOSITORY / "kernels" / "tools" / "gen_iq_tables.py"
    done = subprocess.run([sys.executable, script, "--check"], check=False)
    assert done.returncode == 0, "run kernels/tools/gen_iq_tables.py"
