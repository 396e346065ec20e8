"""The kernels' packing, as the store uses it."""

from __future__ import annotations

import hashlib
from functools import cache

import numpy as np
from numpy.typing import NDArray
from trimaran.errors import KernelError
from trimaran.gguf import GGMLType
from trimaran_kernels import ThreadPool, pack, packed_bytes, usable_cpus

from trimaran_experts.weights import Packing

_ROWS, _COLUMNS = 17, 512


def int8_packing() -> Packing:
    """Every type that has a packed layout is packed; kernels then multiply with int8 activations."""
    return Packing(layout_version(), packed_bytes, pack)


def no_packing() -> Packing:
    """Everything stays in the file's encoding; kernels multiply with float32 activations, exactly."""
    return Packing(0, _stays, _refuse)


@cache
def layout_version() -> int:
    """A number that changes with the packed layout of any type: what packing makes of a known matrix."""
    pool = ThreadPool([usable_cpus(1)[0]])
    digest = hashlib.blake2b(digest_size=7)
    for kind in GGMLType:
        if kind.is_quantised and (size := packed_bytes(int(kind), _ROWS, _COLUMNS)) is not None:
            numbers = np.arange(_ROWS * kind.row_bytes(_COLUMNS), dtype=np.uint32)
            raw = (numbers * np.uint32(2654435761) >> np.uint32(13)).astype(np.uint8)
            out = np.zeros(size, np.uint8)
            pack(pool, int(kind), raw, _ROWS, _COLUMNS, out)
            digest.update(out.tobytes())
    return int.from_bytes(digest.digest(), "little")


def _stays(_type: int, _rows: int, _columns: int) -> int | None:
    return None


def _refuse(
    _pool: ThreadPool, kind: int, _raw: NDArray[np.uint8], _rows: int, _columns: int, _out: NDArray[np.uint8]
) -> None:
    raise KernelError(f"GGUF type {kind} has no packing")
