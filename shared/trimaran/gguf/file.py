"""A GGUF model: one file or the parts of a split one, opened as a whole."""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from trimaran.errors import ModelFileError
from trimaran.gguf.cursor import quoted
from trimaran.gguf.directory import TensorInfo
from trimaran.gguf.metadata import Metadata
from trimaran.gguf.part import Part, open_part

SPLIT_COUNT = "split.count"
SPLIT_NO = "split.no"
SPLIT_TENSORS = "split.tensors.count"
SPLIT_NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


class GGUFFile:
    """A memory-mapped model.

    Tensors are views of the mapped file: nothing is copied, and pages are read when they are touched. Views
    keep their mapping alive, also beyond `close()`. The file must not be truncated while it is mapped.
    """

    def __init__(self, parts: list[Part]) -> None:
        self._parts = parts
        self._tensors = {info.name: info for part in parts for info in part.tensors}

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open a model by its file, or by any part of a split one.

        Raises:
            ModelFileError: a file is missing, truncated, damaged, of another format, or a part is not of this
                model. The message names the file and the field.
        """
        path = Path(path)
        opened = open_part(path)
        count = opened.metadata.integer(SPLIT_COUNT, 1)
        parts = [opened] if count <= 1 else _open_parts(opened, count)
        _check_names(parts)
        return cls(parts)

    @property
    def path(self) -> Path:
        """The first file."""
        return self._parts[0].path

    @property
    def paths(self) -> tuple[Path, ...]:
        """All files, in order; `TensorInfo.part` is an index of this."""
        return tuple(part.path for part in self._parts)

    @property
    def metadata(self) -> Metadata:
        """The metadata of the first file."""
        return self._parts[0].metadata

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """All tensors by name, in the files' order."""
        return MappingProxyType(self._tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(info.nbytes for info in self._tensors.values())

    def tensor(self, name: str) -> TensorInfo:
        """A tensor's description; ModelFileError if the model has no such tensor."""
        try:
            return self._tensors[name]
        except KeyError:
            raise ModelFileError(f"{self.path}: tensor {quoted(name)} is missing") from None

    def raw(self, name: str) -> NDArray[np.uint8]:
        """A tensor's bytes, a read-only uint8 view [nbytes] of the mapped file."""
        info = self.tensor(name)
        return np.frombuffer(self._parts[info.part].data, np.uint8, count=info.nbytes, offset=info.offset)

    def peek(self, name: str, start: int, size: int) -> bytes:
        """A few bytes of a tensor, fewer at its end, without the read-ahead of touching the mapping."""
        info = self.tensor(name)
        path = self._parts[info.part].path
        try:
            with path.open("rb", buffering=0) as file:
                return os.pread(file.fileno(), max(0, min(size, info.nbytes - start)), info.offset + start)
        except OSError as error:
            raise ModelFileError(f"{path}: cannot be read: {error.strerror}") from error

    def forget(self, name: str) -> None:
        """Give the memory back that a tensor's bytes take, once a copy exists; views of them stay good."""
        info = self.tensor(name)
        part = self._parts[info.part]
        start = -(-info.offset // mmap.PAGESIZE) * mmap.PAGESIZE  # whole pages, that no other tensor shares
        size = (info.offset + info.nbytes - start) // mmap.PAGESIZE * mmap.PAGESIZE
        if size <= 0:
            return
        part.data.madvise(mmap.MADV_DONTNEED, start, size)
        with suppress(OSError), part.path.open("rb") as file:  # only a hint
            os.posix_fadvise(file.fileno(), start, size, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        """Unmap the files; one that a view still uses stays mapped until the last view is gone."""
        for part in self._parts:
            with suppress(BufferError):
                part.data.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _open_parts(opened: Part, count: int) -> list[Part]:
    """All parts of the model that `opened` is a part of."""
    match = SPLIT_NAME.fullmatch(opened.path.name)
    if match is None or int(match["count"]) != count:
        raise ModelFileError(
            f"{opened.path}: is part of a model of {count} files, but is not named so",
            remedy=f"name the files NAME-00001-of-{count:05d}.gguf and so on",
        )
    parts = []
    for number in range(1, count + 1):
        path = opened.path.with_name(f"{match['stem']}-{number:05d}-of-{count:05d}.gguf")
        if not path.exists():
            raise ModelFileError(
                f"{path}: is missing, it is part {number} of {count} of the model",
                remedy="put all parts into one folder",
            )
        parts.append(open_part(path, number - 1))
        _check_part(parts[-1], number, count)
    _check_total(parts)
    return parts


def _check_part(part: Part, number: int, count: int) -> None:
    its_count, its_number = part.metadata.integer(SPLIT_COUNT, 1), part.metadata.integer(SPLIT_NO, -1) + 1
    if (its_number, its_count) != (number, count):
        raise ModelFileError(
            f"{part.path}: is part {its_number} of {its_count}, but is named part {number} of {count}",
            remedy="do not rename parts or mix models",
        )


def _check_total(parts: list[Part]) -> None:
    total = sum(len(part.tensors) for part in parts)
    expected = parts[0].metadata.integer(SPLIT_TENSORS, total)
    if total != expected:
        raise ModelFileError(
            f"{parts[0].path}: the parts hold {total} tensors, '{SPLIT_TENSORS}' says {expected}"
        )


def _check_names(parts: list[Part]) -> None:
    seen: set[str] = set()
    for part in parts:
        for info in part.tensors:
            if info.name in seen:
                raise ModelFileError(f"{part.path}: tensor {quoted(info.name)} appears twice")
            seen.add(info.name)
