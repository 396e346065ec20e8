"""The routed experts in the model file: their tensors, checked, and their bytes, read into memory."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from trimaran.errors import ModelFileError
from trimaran.gguf import GGMLType, GGUFFile
from trimaran.spec import ModelSpec
from trimaran.telemetry import Log

from trimaran_experts.placement import Placement

OnProgress = Callable[[float], None]
Stopped = Callable[[], bool]

_PAGE = 4096
_CHUNK = 32 << 20
_REPORT_EVERY_S = 5.0
_log = Log(__name__)


@dataclass(frozen=True)
class ExpertMatrix:
    """One matrix of several experts, one after another, as it lies in the file.

    Attributes:
        type: how the values are stored.
        shape: of one expert, [out, in].
        raw: uint8 view of the mapped file. path, offset: where these bytes are.
    """

    type: GGMLType
    shape: tuple[int, int]
    raw: NDArray[np.uint8]
    path: str
    offset: int

    def expert(self, index: int) -> NDArray[np.uint8]:
        """The bytes of the `index`-th expert of this shard."""
        size = self.shape[0] * self.type.row_bytes(self.shape[1])
        return self.raw[index * size : (index + 1) * size]


@dataclass(frozen=True)
class ExpertLayer:
    """A MoE layer's routed experts: gate and up [intermediate, hidden], down [hidden, intermediate]."""

    layer: int
    gate: ExpertMatrix
    up: ExpertMatrix
    down: ExpertMatrix

    @property
    def matrices(self) -> tuple[ExpertMatrix, ExpertMatrix, ExpertMatrix]:
        """All three."""
        return self.gate, self.up, self.down


def find_experts(file: GGUFFile, spec: ModelSpec, placement: Placement) -> list[ExpertLayer]:
    """The shard's experts of every MoE layer (tensors blk.N.ffn_{gate,up,down}_exps.weight).

    Raises:
        ModelFileError: a tensor is missing or of the wrong shape.
    """
    wide = (spec.moe.intermediate_size, spec.hidden_size)
    narrow = (spec.hidden_size, spec.moe.intermediate_size)

    def matrix(layer: int, kind: str, shape: tuple[int, int]) -> ExpertMatrix:
        return _find(file, f"blk.{layer}.ffn_{kind}_exps.weight", shape, spec.moe.n_experts, placement)

    return [
        ExpertLayer(
            layer, matrix(layer, "gate", wide), matrix(layer, "up", wide), matrix(layer, "down", narrow)
        )
        for layer in range(spec.n_dense_layers, spec.n_layers)
    ]


def _find(
    file: GGUFFile, name: str, shape: tuple[int, int], n_experts: int, placement: Placement
) -> ExpertMatrix:
    info = file.tensor(name)
    if info.shape != (n_experts, *shape):
        raise ModelFileError(
            f"{file.path}: tensor '{name}' has shape {list(info.shape)}, need {[n_experts, *shape]}"
        )
    size = info.nbytes // n_experts
    start, stop = (expert * size for expert in placement.experts)
    path = str(file.paths[info.part])
    return ExpertMatrix(info.type, shape, file.raw(name)[start:stop], path, info.offset + start)


def read_into_memory(layers: Sequence[ExpertLayer], on_progress: OnProgress, stopped: Stopped) -> None:
    """Touch every page of the experts, so that the first tokens need not wait for the disk.

    Args:
        on_progress: is called with the fraction done, 0 to 1.
        stopped: is asked now and then whether to give up.
    """
    total = sum(matrix.raw.size for layer in layers for matrix in layer.matrices)
    done, start = 0, time.monotonic()
    reported = start
    for matrix in (matrix for layer in layers for matrix in layer.matrices):
        for size in _touch(matrix):
            if stopped():
                return
            done += size
            on_progress(done / total)
            if time.monotonic() - reported > _REPORT_EVERY_S:
                reported = time.monotonic()
                _log.info("reading experts", percent=round(100 * done / total, 1), **_speed(done, start))
    _log.info("experts are in memory", gigabytes=round(total / 1e9, 3), **_speed(total, start))


def _touch(matrix: ExpertMatrix) -> Iterator[int]:
    """Read the matrix chunk by chunk, asking the kernel for the next chunk ahead; yields each one's bytes."""
    fd = os.open(matrix.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for first in range(0, matrix.raw.size, _CHUNK):
            os.posix_fadvise(fd, matrix.offset + first, 2 * _CHUNK, os.POSIX_FADV_WILLNEED)
            chunk = matrix.raw[first : first + _CHUNK]
            chunk[::_PAGE].max()  # one byte of each page is enough to map it
            yield chunk.size
    finally:
        os.close(fd)


def _speed(done: int, start: float) -> dict[str, float]:
    return {"gb_per_s": round(done / 1e9 / max(time.monotonic() - start, 1e-9), 2)}
