"""The kernels' packing, as the store uses it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from trimaran.config import Precision
from trimaran.errors import KernelError
from trimaran_kernels import ThreadPool, detect_isa, pack, packed_bytes

from trimaran_experts.weights import Packing

PACKING_VERSION = 2
"""Of kernels/csrc/packed/format.h: another one makes kept weights stale."""

TILES = "amx"
"""The instruction set with matrix tiles, which multiply packed weights exactly."""


def kernel_packing(precision: Precision, isa: str = "auto") -> Packing:
    """What is packed for the kernels that `isa` (see `trimaran_kernels.detect_isa`) allows on this machine.

    With int8 all types that have a layout; with exact, where there are matrix tiles, the layers all of whose
    matrices have one, and elsewhere nothing: those kernels read the file's encoding.
    """
    if precision == "int8":
        return Packing(PACKING_VERSION, packed_bytes, pack)
    if detect_isa(isa) == TILES:
        return Packing(PACKING_VERSION, packed_bytes, pack, whole_layers=True)
    return Packing(0, _nothing, _refuse)


def _nothing(_type: int, _rows: int, _columns: int) -> int | None:
    return None


def _refuse(
    _pool: ThreadPool, kind: int, _raw: NDArray[np.uint8], _rows: int, _columns: int, _out: NDArray[np.uint8]
) -> None:
    raise KernelError(f"GGUF type {kind} is not packed for exact kernels")
