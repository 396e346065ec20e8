"""A bounds-checked reader of one file's bytes: nothing a file says is believed before it is checked."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import NoReturn

from trimaran.errors import ModelFileError

MAX_NAME_BYTES = 1 << 16
DAMAGED = "the file is truncated or damaged: download it again"

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


def quoted(name: str) -> str:
    """A name from a file, on one line and cut, for a message."""
    return repr(name if len(name) <= 80 else name[:77] + "...")


class Cursor:
    """A position in a mapped file; every read names the field that it is for."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self.data = data
        self.end = len(data)
        self.position = 0

    def fail(self, field: str, problem: str, remedy: str = "") -> NoReturn:
        """Raise a ModelFileError that names the file and the field."""
        raise ModelFileError(f"{self.path}: {field}: {problem}", remedy=remedy)

    def skip(self, size: int, field: str) -> int:
        """Move over `size` bytes and return where they begin."""
        start = self.position
        if size > self.end - start:
            self.fail(
                field,
                f"needs {size} bytes at offset {start}, but the file ends at {self.end}",
                DAMAGED,
            )
        self.position = start + size
        return start

    def u32(self, field: str) -> int:
        """The next unsigned 32-bit integer."""
        value: int = _U32.unpack_from(self.data, self.skip(4, field))[0]
        return value

    def u64(self, field: str) -> int:
        """The next unsigned 64-bit integer."""
        value: int = _U64.unpack_from(self.data, self.skip(8, field))[0]
        return value

    def count(self, field: str, least_bytes: int, most: int) -> int:
        """The next 64-bit count of things of at least `least_bytes` bytes each; at most `most` of them."""
        value = self.u64(field)
        if value > most or value * least_bytes > self.end - self.position:
            self.fail(field, f"{value} is more than the file can hold", DAMAGED)
        return value

    def name(self, field: str) -> str:
        """The next string, as a name: valid UTF-8, not empty, not absurdly long."""
        size = self.u64(field)
        if not 0 < size <= MAX_NAME_BYTES:
            self.fail(field, f"a name of {size} bytes")
        start = self.skip(size, field)
        try:
            return str(self.data[start : start + size], "utf-8")
        except UnicodeDecodeError:
            self.fail(field, "a name that is not UTF-8")

    def skip_strings(self, count: int, field: str) -> tuple[int, int]:
        """Move over `count` strings; returns the first byte and the end of them.

        This is the one loop that runs once per vocabulary entry at every start, hence the bare style.
        """
        position, end, data, unpack = self.position, self.end, self.data, _U64.unpack_from
        last = end - 8
        for index in range(count):
            if position > last:
                self.fail(f"{field}[{index}]", f"the file ends at {end}", DAMAGED)
            position += 8 + unpack(data, position)[0]
        if position > end:
            self.fail(field, f"reaches beyond the end of the file at {end}", DAMAGED)
        start, self.position = self.position, position
        return start, position
