"""The head of a store's file: what it holds, and whether it is whole.

Little-endian, offsets in bytes:

    0     magic "TRIPACKD", u32 version, u32 complete (written last, 1), u64 data offset, u64 file size, u64
          bytes written so far, u32 size of the manifest, then 16 bytes of its BLAKE2b
    4096  the manifest, JSON
    data  the matrices, from a 2 MiB border on, as `layout.Place` says
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from trimaran_experts.store.layout import LAYOUT_VERSION, Layout, Place

MAGIC = b"TRIPACKD"
HEAD_BYTES = 4096
_HEAD = struct.Struct("<8s2I3QI16s")
_COMPLETE_AT = 12
_WRITTEN_AT = 32
_BORDER = 2 << 20
_SAMPLES = 8
_SAMPLE_BYTES = 4096
_MAX_MANIFEST = 64 << 20


class Source(msgspec.Struct, frozen=True, array_like=True):
    """A model file that the weights came from: another size or time of change means other weights."""

    nbytes: int
    mtime_ns: int


class Identity(msgspec.Struct, frozen=True):
    """Whose weights these are.

    Attributes:
        fingerprint: of the model (`trimaran.fingerprint`). packing: version of what packing makes of it
            (`Packing.version_of`).
        shard: name of the slice; experts, columns: its half-open ranges. sources: the model's files.
        model: its name, for people.
    """

    fingerprint: str
    packing: int
    shard: str
    experts: tuple[int, int]
    columns: tuple[int, int]
    sources: tuple[Source, ...]
    model: str

    @property
    def key(self) -> str:
        """Name of its file: the same for every service that needs the same bytes."""
        parts = (self.fingerprint, self.packing, LAYOUT_VERSION, self.experts, self.columns)
        return hashlib.blake2b(msgspec.json.encode(parts), digest_size=12).hexdigest()


class Manifest(msgspec.Struct, frozen=True):
    """What lies behind the head; `samples` holds a hash of some pages of each place."""

    identity: Identity
    places: tuple[Place, ...]
    samples: tuple[str, ...]
    created: float


@dataclass(frozen=True)
class Head:
    """The first page, read."""

    complete: bool
    data_offset: int
    file_bytes: int
    written: int
    manifest_bytes: int
    manifest_hash: bytes


def data_offset(layout: Layout) -> int:
    """Where the data begins: behind room for a manifest of this many places."""
    head = HEAD_BYTES + 4096 + 256 * len(layout.places)
    return -(-head // _BORDER) * _BORDER


def write_head(memory: NDArray[np.uint8], offset: int, written: int) -> None:
    """The head of a file that is being written."""
    head = _HEAD.pack(MAGIC, LAYOUT_VERSION, 0, offset, memory.size, written, 0, b"")
    memory[: len(head)] = np.frombuffer(head, np.uint8)


def note_written(memory: NDArray[np.uint8], written: int) -> None:
    """Tell who waits how far the data is."""
    memory[_WRITTEN_AT : _WRITTEN_AT + 8].view(np.uint64)[0] = written


def write_manifest(memory: NDArray[np.uint8], offset: int, manifest: Manifest) -> None:
    """Everything but the flag that says that the file is whole."""
    text = msgspec.json.encode(manifest)
    assert HEAD_BYTES + len(text) <= offset
    memory[HEAD_BYTES : HEAD_BYTES + len(text)] = np.frombuffer(text, np.uint8)
    head = _HEAD.pack(MAGIC, LAYOUT_VERSION, 0, offset, memory.size, memory.size, len(text), _hash(text))
    memory[: len(head)] = np.frombuffer(head, np.uint8)


def mark_complete(memory: NDArray[np.uint8]) -> None:
    """The last write."""
    memory[_COMPLETE_AT : _COMPLETE_AT + 4].view(np.uint32)[0] = 1


def read_head(data: bytes) -> Head | None:
    """The head in the first bytes of a file; None if there is none of this version."""
    if len(data) < _HEAD.size:
        return None
    magic, version, complete, offset, size, written, manifest_bytes, digest = _HEAD.unpack_from(data)
    if magic != MAGIC or version != LAYOUT_VERSION:
        return None
    return Head(complete == 1, offset, size, written, manifest_bytes, digest)


def read_manifest(head: Head, text: bytes) -> Manifest | None:
    """The manifest, or None if it is not what the head says."""
    if len(text) != head.manifest_bytes or _hash(text) != head.manifest_hash:
        return None
    try:
        return msgspec.json.decode(text, type=Manifest)
    except msgspec.MsgspecError:
        return None


def plausible(head: Head, file_bytes: int) -> bool:
    """Whether the head's sizes agree with the file's and with each other."""
    return (
        head.complete
        and head.file_bytes == file_bytes
        and 0 < head.manifest_bytes <= _MAX_MANIFEST
        and HEAD_BYTES + head.manifest_bytes <= head.data_offset <= file_bytes
    )


def sample_hashes(data: NDArray[np.uint8], places: Sequence[Place]) -> tuple[str, ...]:
    """A hash of some evenly spaced pages of each place, its first and last bytes among them."""
    return tuple(_sample_hash(data[place.offset : place.offset + place.nbytes]) for place in places)


def _sample_hash(matrix: NDArray[np.uint8]) -> str:
    last = max(0, matrix.size - _SAMPLE_BYTES)
    digest = hashlib.blake2b(digest_size=8)
    for sample in range(_SAMPLES):
        first = last * sample // (_SAMPLES - 1)
        digest.update(matrix[first : first + _SAMPLE_BYTES].tobytes())
    return digest.hexdigest()


def _hash(text: bytes) -> bytes:
    return hashlib.blake2b(text, digest_size=16).digest()
