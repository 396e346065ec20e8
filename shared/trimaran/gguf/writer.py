"""Writing GGUF version 3, in one file or in parts."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from trimaran.gguf.encode import Writable, encode_string, encode_value
from trimaran.gguf.types import DEFAULT_ALIGNMENT, MAGIC, GGMLType

VERSION = 3

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class TensorData:
    """A tensor to write.

    shape: numpy order, outermost first. data: uint8, the bytes of all rows, or a function that makes them
    when their turn comes, so that a model larger than memory can be written, or None: zeros that take no
    space on disk.
    """

    name: str
    type: GGMLType
    shape: tuple[int, ...]
    data: Bytes | Callable[[], Bytes] | None

    @property
    def nbytes(self) -> int:
        """The size that type and shape ask for."""
        return prod(self.shape[:-1]) * self.type.row_bytes(self.shape[-1])

    def load(self) -> Bytes | None:
        """The bytes; ValueError if they are not as many as type and shape ask for."""
        data = self.data() if callable(self.data) else self.data
        if data is None:
            return None
        if data.dtype != np.uint8 or data.size != self.nbytes:
            wanted = f"uint8[{self.nbytes}] for {self.type.name}{list(self.shape)}"
            raise ValueError(f"tensor {self.name!r} has {data.dtype}[{data.size}], not {wanted}")
        return data


def write_gguf(path: str | Path, metadata: Mapping[str, Writable], tensors: Sequence[TensorData]) -> None:
    """Write a model file; it appears under its name only when it is whole.

    `general.alignment` in `metadata` sets the alignment, 32 by default.

    Raises:
        ValueError: a tensor's data do not fit its type and shape, or two tensors have one name.
        TypeError: a metadata value that the format cannot hold.
    """
    path = Path(path)
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int | np.integer) or alignment <= 0:
        raise TypeError(f"general.alignment is {alignment!r}")
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise ValueError("two tensors have the same name")
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            _write(file, metadata, tensors, int(alignment))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_split_gguf(
    folder: str | Path, stem: str, metadata: Mapping[str, Writable], tensors: Sequence[TensorData], parts: int
) -> list[Path]:
    """Write a model as `parts` files `stem-00001-of-0000N.gguf`, the first with the metadata.

    Returns the paths; raises like `write_gguf`.
    """
    if not 1 <= parts <= len(tensors):
        raise ValueError(f"{len(tensors)} tensors cannot be split in {parts} parts")
    borders = [len(tensors) * part // parts for part in range(parts + 1)]
    paths = []
    for number in range(parts):
        split: dict[str, Writable] = {
            "split.no": np.uint16(number),
            "split.count": np.uint16(parts),
            "split.tensors.count": np.int32(len(tensors)),
        }
        path = Path(folder) / f"{stem}-{number + 1:05d}-of-{parts:05d}.gguf"
        head = {**metadata, **split} if number == 0 else split
        write_gguf(path, head, tensors[borders[number] : borders[number + 1]])
        paths.append(path)
    return paths


def _write(
    file: BinaryIO, metadata: Mapping[str, Writable], tensors: Sequence[TensorData], alignment: int
) -> None:
    file.write(MAGIC + struct.pack("<IQQ", VERSION, len(tensors), len(metadata)))
    for key, value in metadata.items():
        file.write(encode_string(key) + encode_value(value))
    offset = 0
    for tensor in tensors:
        shape = tensor.shape[::-1]
        file.write(encode_string(tensor.name))
        file.write(struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, tensor.type, offset))
        offset += tensor.nbytes + -tensor.nbytes % alignment
    for tensor in tensors:
        _pad(file, alignment)
        data = tensor.load()
        if data is None:
            file.seek(tensor.nbytes, os.SEEK_CUR)
        else:
            file.write(np.ascontiguousarray(data).data)
    _pad(file, alignment)
    file.truncate()


def _pad(file: BinaryIO, alignment: int) -> None:
    file.write(bytes(-file.tell() % alignment))
