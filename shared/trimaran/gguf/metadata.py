"""The key-value part of a GGUF file, decoded when it is asked for."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray

from trimaran.errors import ModelFileError
from trimaran.gguf.cursor import Cursor, quoted
from trimaran.gguf.types import SCALAR_DTYPES, ValueType

MAX_KEYS = 1 << 16
MAX_ARRAY_ITEMS = 1 << 24
MAX_STRING_BYTES = 1 << 28
SMALLEST_ENTRY_BYTES = 13  # an 8-byte key length, a 4-byte type, a 1-byte value

Value = int | float | bool | str | list[str] | NDArray[Any]
T = TypeVar("T")

_U64 = struct.Struct("<Q")


@dataclass(frozen=True)
class Span:
    """Where a value lies in its file. `item` is the type of a scalar or of an array's items."""

    item: ValueType
    is_array: bool
    start: int
    end: int
    count: int


def parse_spans(cursor: Cursor, count: int) -> dict[str, Span]:
    """Walk over `count` key-value pairs, checking that each lies in the file; nothing is decoded."""
    spans: dict[str, Span] = {}
    for index in range(count):
        key = cursor.name(f"metadata key {index}")
        field = f"metadata {quoted(key)}"
        if key in spans:
            cursor.fail(field, "the key appears twice")
        spans[key] = _parse_span(cursor, field)
    return spans


def _value_type(cursor: Cursor, field: str) -> ValueType:
    number = cursor.u32(field)
    try:
        return ValueType(number)
    except ValueError:
        cursor.fail(field, f"unknown value type {number}")


def _parse_span(cursor: Cursor, field: str) -> Span:
    kind = _value_type(cursor, field)
    if kind is ValueType.ARRAY:
        return _parse_array(cursor, field)
    if kind is ValueType.STRING:
        return _parse_strings(cursor, field, count=1, is_array=False)
    size = np.dtype(SCALAR_DTYPES[kind]).itemsize
    start = cursor.skip(size, field)
    return Span(kind, False, start, start + size, 1)


def _parse_array(cursor: Cursor, field: str) -> Span:
    item = _value_type(cursor, field)
    if item is ValueType.ARRAY:
        cursor.fail(field, "an array of arrays, which is not supported")
    size = 8 if item is ValueType.STRING else np.dtype(SCALAR_DTYPES[item]).itemsize
    count = cursor.count(field, least_bytes=size, most=MAX_ARRAY_ITEMS)
    if item is ValueType.STRING:
        return _parse_strings(cursor, field, count, is_array=True)
    start = cursor.skip(count * size, field)
    return Span(item, True, start, start + count * size, count)


def _parse_strings(cursor: Cursor, field: str, count: int, *, is_array: bool) -> Span:
    start, end = cursor.skip_strings(count, field)
    if end - start > MAX_STRING_BYTES:
        cursor.fail(field, f"{end - start} bytes of text are more than the {MAX_STRING_BYTES} allowed")
    return Span(ValueType.STRING, is_array, start, end, count)


class Metadata(Mapping[str, Value]):
    """A file's metadata: a read-only mapping that decodes a value when it is first asked for.

    Scalars come as int, float, bool and str, arrays as `list[str]` or as read-only 1-D numpy arrays. The
    typed getters raise ModelFileError, naming file and key, for a missing key (unless there is a default) and
    for a value of another type.
    """

    def __init__(self, path: Path, data: mmap.mmap, spans: dict[str, Span]) -> None:
        self._path = path
        self._data = data
        self._spans = spans
        self._values: dict[str, Value] = {}

    def __getitem__(self, key: str) -> Value:
        if key not in self._values:
            self._values[key] = self._decode(key, self._spans[key])
        return self._values[key]

    def __contains__(self, key: object) -> bool:
        return key in self._spans

    def __iter__(self) -> Iterator[str]:
        return iter(self._spans)

    def __len__(self) -> int:
        return len(self._spans)

    def length(self, key: str) -> int:
        """Number of items of an array, without decoding them; ModelFileError if there is no such array."""
        span = self._spans.get(key)
        if span is None or not span.is_array:
            self._fail(key, "is missing" if span is None else "is not an array")
        return span.count

    def integer(self, key: str, default: int | None = None) -> int:
        """An integer of any width."""
        return self._typed(key, int, "an integer", default)

    def number(self, key: str, default: float | None = None) -> float:
        """A float, or an integer taken as one."""
        if isinstance(self.get(key), int):
            return float(self.integer(key))
        return self._typed(key, float, "a number", default)

    def flag(self, key: str, default: bool | None = None) -> bool:
        """A boolean."""
        return self._typed(key, bool, "a boolean", default)

    def text(self, key: str, default: str | None = None) -> str:
        """A string."""
        return self._typed(key, str, "a string", default)

    def texts(self, key: str) -> list[str]:
        """An array of strings."""
        return self._typed(key, list, "an array of strings", None)

    def array(self, key: str) -> NDArray[Any]:
        """An array of numbers, read-only, 1-D, of the file's type."""
        return self._typed(key, np.ndarray, "an array of numbers", None)

    def _typed(self, key: str, kind: type[T], what: str, default: T | None) -> T:
        if key not in self._spans:
            if default is None:
                self._fail(key, "is missing")
            return default
        value = self[key]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            self._fail(key, f"is not {what}")
        return value

    def _decode(self, key: str, span: Span) -> Value:
        if span.item is ValueType.STRING:
            texts = self._decode_strings(key, span)
            return texts if span.is_array else texts[0]
        values = np.frombuffer(self._data[span.start : span.end], dtype=SCALAR_DTYPES[span.item])
        if span.item is ValueType.BOOL and values.view(np.uint8).max(initial=0) > 1:
            self._fail(key, "holds a boolean that is neither 0 nor 1")
        if span.is_array:
            return values
        scalar: int | float | bool = values[0].item()
        return scalar

    def _decode_strings(self, key: str, span: Span) -> list[str]:
        data = self._data[span.start : span.end]  # one copy, then plain slices of bytes
        texts: list[str] = []
        position, unpack = 0, _U64.unpack_from
        try:
            for _ in range(span.count):
                end = position + 8 + unpack(data, position)[0]
                texts.append(data[position + 8 : end].decode())
                position = end
        except UnicodeDecodeError:
            self._fail(key, f"text {len(texts)} is not UTF-8")
        return texts

    def _fail(self, key: str, problem: str) -> NoReturn:
        raise ModelFileError(f"{self._path}: metadata {quoted(key)} {problem}")
