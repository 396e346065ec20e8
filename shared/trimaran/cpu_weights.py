"""How many bytes a matrix takes when the CPU's kernels hold it packed (kernels/csrc/packed/format.h).

The bits of the file in another order: 16 rows side by side, in cells of some columns. Small integers that the
file stores in 6 bits take a byte, and the last stripe is filled up, so a matrix grows by 0 to 4 %.
"""

from __future__ import annotations

from math import prod

from trimaran.gguf import GGMLType, TensorInfo

_STRIPE_ROWS = 16

# Columns and bytes of a cell, by type.
_CELLS = {
    GGMLType.Q4_0: (64, 576),
    GGMLType.Q4_1: (64, 640),
    GGMLType.Q5_0: (64, 704),
    GGMLType.Q5_1: (64, 768),
    GGMLType.Q8_0: (64, 1088),
    GGMLType.IQ4_NL: (64, 576),
    GGMLType.Q2_K: (256, 1344),
    GGMLType.Q3_K: (256, 1824),
    GGMLType.Q4_K: (256, 2368),
    GGMLType.Q5_K: (256, 2880),
    GGMLType.Q6_K: (256, 3360),
    GGMLType.IQ4_XS: (256, 2208),
}


def packed_bytes(info: TensorInfo) -> int:
    """Bytes of a matrix, or of several [n, out, in] that are packed one by one.

    A type without a packed layout is computed from the file's own bytes.
    """
    if info.type not in _CELLS or len(info.shape) < 2:
        return info.nbytes
    columns, cell_bytes = _CELLS[info.type]
    *many, rows, width = info.shape
    stripes = prod(many) * -(-rows // _STRIPE_ROWS)
    return stripes * -(-width // columns) * cell_bytes
