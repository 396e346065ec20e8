"""The kernels' packing, as the store uses it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from trimaran.config import Precision
from trimaran.errors import KernelError
from trimaran_kernels import ThreadPool, pack, packed_bytes

from trimaran_experts.weights import Packing

PACKING_VERSION = 2
"""Of kernels/csrc/packed/format.h: another one makes kept weights stale."""


def kernel_packing(precision: Precision) -> Packing:
    """What is packed: all types that have a layout, or none, since exact kernels read the file's encoding."""
    if precision == "int8":
        return Packing(version=PACKING_VERSION, packed_bytes=packed_bytes, pack=pack)
    return Packing(version=0, packed_bytes=_nothing, pack=_refuse)


def _nothing(_type: int, _rows: int, _columns: int) -> int | None:
    return None


def _refuse(
    _pool: ThreadPool, kind: int, _raw: NDArray[np.uint8], _rows: int, _columns: int, _out: NDArray[np.uint8]
) -> None:
    raise KernelError(f"GGUF type {kind} is not packed for exact kernels")
