"""One GGUF file of a model: its header, and what the header leads to."""

from __future__ import annotations

import mmap
import stat
from dataclasses import dataclass
from pathlib import Path

from trimaran.errors import ModelFileError
from trimaran.gguf.cursor import Cursor
from trimaran.gguf.directory import MAX_TENSORS, SMALLEST_INFO_BYTES, TensorInfo, parse_directory
from trimaran.gguf.metadata import MAX_KEYS, SMALLEST_ENTRY_BYTES, Metadata, parse_spans
from trimaran.gguf.types import DEFAULT_ALIGNMENT, MAGIC

MAX_ALIGNMENT = 1 << 20

_LOOK_ALIKES = {
    b"vers": "it may be a Git LFS pointer: run `git lfs pull`",
    b"<!DO": "it may be a web page: download the file itself",
    b"<htm": "it may be a web page: download the file itself",
}


@dataclass(frozen=True)
class Part:
    """A mapped file with its metadata and its tensors, in the file's order."""

    path: Path
    data: mmap.mmap
    metadata: Metadata
    tensors: list[TensorInfo]


def open_part(path: Path, index: int = 0) -> Part:
    """Map and check one file; `index` is its place in a split model, from 0."""
    cursor = Cursor(path, _map(path))
    tensor_count, key_count = _read_header(cursor)
    metadata = Metadata(path, cursor.data, parse_spans(cursor, key_count))
    alignment = metadata.integer("general.alignment", DEFAULT_ALIGNMENT)
    if not 0 < alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        cursor.fail("metadata 'general.alignment'", f"{alignment} is no power of two up to {MAX_ALIGNMENT}")
    return Part(path, cursor.data, metadata, parse_directory(cursor, tensor_count, alignment, index))


def _map(path: Path) -> mmap.mmap:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # before open(): a FIFO would block it forever
            raise ModelFileError(f"{path}: is not a regular file", remedy="name the .gguf file itself")
        with path.open("rb") as file:
            if path.stat().st_size < len(MAGIC):
                raise ModelFileError(f"{path}: is not a GGUF file (it is empty or almost so)")
            return mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ModelFileError(f"{path}: cannot be opened: {reason}") from error


def _read_header(cursor: Cursor) -> tuple[int, int]:
    magic = cursor.data[: len(MAGIC)]
    cursor.skip(len(MAGIC), "magic")
    if magic != MAGIC:
        problem = f"is not a GGUF file (it starts with {magic!r}, not {MAGIC!r})"
        cursor.fail("magic", problem, _LOOK_ALIKES.get(magic, ""))
    version = cursor.u32("version")
    if version and version & 0xFFFF == 0:
        cursor.fail(
            "version", "big-endian GGUF is not supported", "convert the model for little-endian machines"
        )
    if version not in (2, 3):
        cursor.fail(
            "version", f"GGUF version {version} is not supported, only 2 and 3", "convert the model again"
        )
    tensors = cursor.count("tensor count", SMALLEST_INFO_BYTES, MAX_TENSORS)
    keys = cursor.count("metadata count", SMALLEST_ENTRY_BYTES, MAX_KEYS)
    return tensors, keys
