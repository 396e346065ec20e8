"""The kernels' packing, as the store uses it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from trimaran.errors import KernelError
from trimaran_kernels import ThreadPool

from trimaran_experts.weights import Packing


def kernel_packing() -> Packing:
    """No type is packed: kernels compute from the file's encoding."""
    return Packing(version=0, packed_bytes=_packed_bytes, pack=_pack)


def _packed_bytes(_type: int, _rows: int, _columns: int) -> int | None:
    return None


def _pack(
    _pool: ThreadPool, kind: int, _raw: NDArray[np.uint8], _rows: int, _columns: int, _out: NDArray[np.uint8]
) -> None:
    raise KernelError(f"GGUF type {kind} has no packing")
