"""The tensor directory of a GGUF file: names, types, shapes and places, all checked before any is used."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

from trimaran.gguf.cursor import DAMAGED, Cursor, quoted
from trimaran.gguf.types import UNSUPPORTED_TYPE_NAMES, GGMLType

MAX_TENSORS = 1 << 20
MAX_DIMENSIONS = 4
MAX_ELEMENTS = 1 << 48
SMALLEST_INFO_BYTES = 33  # 8 + 1 name, 4 number of dimensions, 8 one dimension, 4 type, 8 offset


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a model file.

    shape: numpy order, outermost first: a matrix is [out, in], the experts' [experts, out, in].
    part: index of the file of a split model. offset: first byte in that file. nbytes: its size.
    """

    name: str
    type: GGMLType
    shape: tuple[int, ...]
    part: int
    offset: int
    nbytes: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row (the innermost dimension)."""
        return self.type.row_bytes(self.shape[-1])


def parse_directory(cursor: Cursor, count: int, alignment: int, part: int) -> list[TensorInfo]:
    """Read `count` tensor infos; the cursor ends at the first byte of tensor data.

    Offsets in the file are relative to the data; the ones returned are absolute.
    """
    relative = [_parse_info(cursor, index, part) for index in range(count)]
    cursor.position += -cursor.position % alignment
    infos = [_place(cursor, info, alignment) for info in relative]
    _check_overlaps(cursor, infos)
    return infos


def _parse_info(cursor: Cursor, index: int, part: int) -> TensorInfo:
    name = cursor.name(f"tensor {index}")
    field = f"tensor {quoted(name)}"
    n_dims = cursor.u32(field)
    if not 1 <= n_dims <= MAX_DIMENSIONS:
        cursor.fail(field, f"{n_dims} dimensions; 1 to {MAX_DIMENSIONS} are possible")
    shape = tuple(cursor.u64(field) for _ in range(n_dims))[::-1]
    if not all(shape) or prod(shape) > MAX_ELEMENTS:
        cursor.fail(field, f"impossible shape {list(shape)}")
    kind = _ggml_type(cursor, field, cursor.u32(field))
    if shape[-1] % kind.block_size:
        cursor.fail(field, f"rows of {shape[-1]} values, but {kind.name} has blocks of {kind.block_size}")
    nbytes = prod(shape[:-1]) * kind.row_bytes(shape[-1])
    return TensorInfo(name, kind, shape, part, cursor.u64(field), nbytes)


def _ggml_type(cursor: Cursor, field: str, number: int) -> GGMLType:
    try:
        return GGMLType(number)
    except ValueError:
        name = UNSUPPORTED_TYPE_NAMES.get(number, "unknown")
        supported = ", ".join(kind.name for kind in GGMLType)
        cursor.fail(field, f"type {number} ({name}) is not supported", f"supported: {supported}")


def _place(cursor: Cursor, info: TensorInfo, alignment: int) -> TensorInfo:
    field = f"tensor {quoted(info.name)}"
    if info.offset % alignment:
        cursor.fail(field, f"offset {info.offset} is no multiple of the alignment {alignment}")
    start = cursor.position + info.offset
    if start + info.nbytes > cursor.end:
        cursor.fail(
            field,
            f"lies at bytes {start} to {start + info.nbytes}, but the file ends at {cursor.end}",
            DAMAGED,
        )
    return TensorInfo(info.name, info.type, info.shape, info.part, start, info.nbytes)


def _check_overlaps(cursor: Cursor, infos: Iterable[TensorInfo]) -> None:
    end, previous = 0, ""
    for info in sorted(infos, key=lambda info: info.offset):
        if info.offset < end:
            cursor.fail(f"tensor {quoted(info.name)}", f"overlaps tensor {quoted(previous)}")
        end, previous = info.offset + info.nbytes, info.name
