"""Write the IQ code books as C++ tables: `python kernels/tools/gen_iq_tables.py` (--check only compares).

The tables come from `trimaran.gguf.iq_grids`, so Python and C++ cannot disagree. A row becomes one integer
whose lowest byte is the row's first value, ready to be loaded into a vector register as it is.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from trimaran.gguf.iq_grids import (
    IQ1_GRID,
    IQ2_S_GRID,
    IQ2_XS_GRID,
    IQ2_XXS_GRID,
    IQ3_S_GRID,
    IQ3_XXS_GRID,
    IQ4_LEVELS,
    SIGN_MASKS,
    Grid,
)

TARGET = Path(__file__).parents[1] / "csrc" / "quant" / "iq_tables.inl"

GRIDS = {
    "kIq2XxsGrid": IQ2_XXS_GRID,
    "kIq2XsGrid": IQ2_XS_GRID,
    "kIq2SGrid": IQ2_S_GRID,
    "kIq3XxsGrid": IQ3_XXS_GRID,
    "kIq3SGrid": IQ3_S_GRID,
    "kIq1Grid": IQ1_GRID,
}

HEADER = """\
// Made by kernels/tools/gen_iq_tables.py from shared/trimaran/gguf/iq_grids.py: change those, not this file.
// A grid row is one integer, its first value in the lowest byte; the values of kIq1Grid are signed bytes.
// clang-format off
"""


def array(ctype: str, name: str, size: int, numbers: Iterable[str], per_line: int) -> Iterator[str]:
    """The lines of one C++ array."""
    yield f"inline constexpr {ctype} {name}[{size}] = {{"
    numbers = list(numbers)
    for start in range(0, size, per_line):
        yield "    " + ", ".join(numbers[start : start + per_line]) + ","
    yield "};"


def grid_array(name: str, grid: Grid) -> Iterator[str]:
    """A code book as 4- or 8-byte integers."""
    digits = 2 * grid.width
    rows = grid.values().view(f"<u{grid.width}").ravel()
    numbers = (f"0x{int(row):0{digits}x}" for row in rows)
    return array(f"std::uint{8 * grid.width}_t", name, grid.rows, numbers, 4 if grid.width == 8 else 8)


def render() -> str:
    """The whole file."""
    lines = [HEADER]
    for name, grid in GRIDS.items():
        lines += [*grid_array(name, grid), ""]
    masks = (f"0x{int(mask):02x}" for mask in SIGN_MASKS)
    lines += [*array("std::uint8_t", "kIqSignMasks", len(SIGN_MASKS), masks, 16), ""]
    lines += [*array("std::int8_t", "kIq4Levels", len(IQ4_LEVELS), map(str, IQ4_LEVELS), 16), ""]
    lines.append("// clang-format on")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the tables, or with --check say whether they are up to date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    text = render()
    if parser.parse_args().check:
        return 0 if TARGET.is_file() and TARGET.read_text() == text else 1
    TARGET.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
