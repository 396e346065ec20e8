"""Reads recordings of layer calls, which `kernels/csrc/hop/recorder.h` writes and whose layout it states."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from trimaran.errors import ModelFileError
from trimaran.wire import Status

MAGIC = b"TRIRECRD"
VERSION = 1
_HEADER = struct.Struct("<8s4I104s")
_CALL = struct.Struct("<IiIIiIQ")
_MARK = 0x4C4C4143
_ELEMENTS = (np.dtype(np.float32), np.dtype(np.uint16))
_MOST = 1 << 20  # of any dimension, far above any model


@dataclass(frozen=True)
class RecordingHeader:
    """Whose calls these are: the model's dimensions and fingerprint."""

    hidden_size: int
    top_k: int
    n_experts: int
    fingerprint: str


@dataclass(frozen=True)
class RecordedCall:
    """One call: x and y [n, hidden] float32 or the bits of bf16, ids int32 and weights float32 [n, top_k].

    y is None if the status is not OK. `seconds` is since the recording began.
    """

    layer: int
    status: int
    seconds: float
    x: NDArray[np.generic]
    ids: NDArray[np.generic]
    weights: NDArray[np.generic]
    y: NDArray[np.generic] | None


class Recording:
    """An open recording; iterate it for its calls.

    Raises:
        ModelFileError: no recording, one of another version, or damaged; while iterating, cut short.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file: BinaryIO = path.open("rb")
        except OSError as error:
            raise ModelFileError(
                f"{path}: {error.strerror}", remedy="`trimaran experts record` writes recordings"
            ) from error
        try:
            self.header = self._read_header()
        except ModelFileError:
            self.close()
            raise

    def __iter__(self) -> Iterator[RecordedCall]:
        self._file.seek(_HEADER.size)
        while head := self._file.read(_CALL.size):
            if len(head) < _CALL.size:
                raise self._cut_short()
            yield self._read_call(head)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _read_header(self) -> RecordingHeader:
        data = self._file.read(_HEADER.size)
        if len(data) < _HEADER.size or data[: len(MAGIC)] != MAGIC:
            raise ModelFileError(f"{self._path}: is no recording of `trimaran experts record`")
        _, version, hidden, top_k, n_experts, fingerprint = _HEADER.unpack(data)
        if version != VERSION:
            raise ModelFileError(f"{self._path}: recording of version {version}, need {VERSION}")
        if not all(1 <= size <= _MOST for size in (hidden, top_k, n_experts)):
            raise ModelFileError(f"{self._path}: impossible dimensions {hidden}, {top_k}, {n_experts}")
        return RecordingHeader(hidden, top_k, n_experts, fingerprint.rstrip(b"\0").decode("ascii", "replace"))

    def _read_call(self, head: bytes) -> RecordedCall:
        mark, layer, n_tokens, dtype, status, _, ns = _CALL.unpack(head)
        if mark != _MARK or dtype >= len(_ELEMENTS) or layer < 0 or n_tokens > _MOST:
            place = self._file.tell() - _CALL.size
            raise ModelFileError(f"{self._path}: damaged at byte {place}: no call begins there")
        hidden, top_k, element = self.header.hidden_size, self.header.top_k, _ELEMENTS[dtype]
        x = self._read_array(element, n_tokens, hidden)
        ids = self._read_array(np.dtype(np.int32), n_tokens, top_k)
        weights = self._read_array(np.dtype(np.float32), n_tokens, top_k)
        y = self._read_array(element, n_tokens, hidden) if status == Status.OK else None
        return RecordedCall(layer, status, ns / 1e9, x, ids, weights, y)

    def _read_array(self, element: np.dtype[np.generic], rows: int, width: int) -> NDArray[np.generic]:
        size = rows * width * element.itemsize
        data = self._file.read(size)
        if len(data) < size:
            raise self._cut_short()
        return np.frombuffer(data, element).reshape(rows, width)

    def _cut_short(self) -> ModelFileError:
        return ModelFileError(f"{self._path}: ends within a call", remedy="record it anew")
