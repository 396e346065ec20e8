"""A store's file: one builder at a time, any number of readers, never half a file taken for a whole one.

Locks (flock) tell who lives: a builder holds the file exclusively, a reader shared, for its life; the kernel
lets go of both when their process dies. The file is whole only when its last written word says so.
"""

from __future__ import annotations

import fcntl
import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from trimaran.errors import ConfigError, PeerError, PlanError
from trimaran.mapped_file import map_file, page_border, wish_huge_pages
from trimaran.telemetry import Log
from trimaran.units import format_bytes

from trimaran_experts.store.layout import Layout
from trimaran_experts.store.manifest import (
    HEAD_BYTES,
    Head,
    Identity,
    Manifest,
    data_offset,
    mark_complete,
    note_written,
    plausible,
    read_head,
    read_manifest,
    sample_hashes,
    write_head,
    write_manifest,
)

SUFFIX = ".experts"
STALL_S = 60.0
"""A builder whose file does not grow for so long is not waited for any more."""

_POLL_S = 0.1
_log = Log(__name__)

NoteWritten = Callable[[int], None]


@dataclass(frozen=True)
class Wanted:
    """The weights that a service needs, and how to make them.

    Attributes:
        make_room: is asked with the bytes needed before a file is built; raises PlanError if they do not fit.
        fill: writes the data, which begins at an offset of the file; False if it was told to stop.
        on_progress: takes the fraction that another service, which builds the same, has written.
    """

    identity: Identity
    layout: Layout
    make_room: Callable[[int], None]
    fill: Callable[[NDArray[np.uint8], SegmentFile, int, NoteWritten], bool]
    on_progress: Callable[[float], None]
    stopped: Callable[[], bool]


@dataclass(frozen=True)
class Segment:
    """Weights attached read-only. The mapping itself holds the shared lock as long as it lives.

    Attributes:
        file_id: device and inode. offset: of the data in the file.
    """

    path: Path
    data: NDArray[np.uint8]
    file_id: tuple[int, int]
    offset: int


class SegmentFile:
    """An open file and its lock.

    Raises:
        ConfigError: the path is another user's, or no regular file.
    """

    def __init__(self, path: Path, *, create: bool) -> None:
        self.path = path
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | (os.O_CREAT if create else 0)
        try:
            self.fd = os.open(path, flags, 0o600)
        except OSError as error:
            raise ConfigError(
                f"{path}: {error.strerror}", remedy="choose another experts.store_dir"
            ) from error
        info = os.fstat(self.fd)
        if info.st_uid != os.geteuid() or not stat.S_ISREG(info.st_mode):
            self.close()
            raise ConfigError(
                f"{path}: is not a file of this user", remedy="remove it, or choose another experts.store_dir"
            )

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return os.fstat(self.fd).st_size

    @property
    def file_id(self) -> tuple[int, int]:
        """Device and inode."""
        info = os.fstat(self.fd)
        return info.st_dev, info.st_ino

    @property
    def is_private(self) -> bool:
        """Whether nobody else may open it."""
        return not os.fstat(self.fd).st_mode & 0o077

    def is_current(self) -> bool:
        """Whether the file is still the one at its path."""
        try:
            return os.path.samestat(os.fstat(self.fd), self.path.lstat())
        except FileNotFoundError:
            return False

    def try_lock(self, kind: int) -> bool:
        """Take fcntl.LOCK_EX or LOCK_SH, or change to it, without waiting."""
        try:
            fcntl.flock(self.fd, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def head(self) -> Head | None:
        """The head as it is now."""
        return read_head(os.pread(self.fd, HEAD_BYTES, 0))

    def map(self, size: int, *, writable: bool) -> NDArray[np.uint8]:
        """The whole file in memory, on a border of its huge pages."""
        return map_file(self.fd, size, writable=writable, border=page_border(self.fd))

    def close(self) -> None:
        """Let go. May be called twice."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def open_segment(path: Path, wanted: Wanted) -> Segment | None:
    """Attach the weights at `path`; build them first if they are not there, not whole or not the right ones.

    Returns:
        None if it was told to stop.

    Raises:
        ConfigError: the path cannot be used. PlanError: no room. PeerError: another service builds them, but
            does not get on.
    """
    patience = _Patience(wanted)
    while not wanted.stopped():
        file = SegmentFile(path, create=True)
        try:
            segment = _attach_or_build(file, wanted)
            if segment is not None:
                return segment
            if file.is_current():
                patience.wait(file)
        finally:
            file.close()
    return None


def _attach_or_build(file: SegmentFile, wanted: Wanted) -> Segment | None:
    """The segment; None if somebody else builds it, or if this file is given up for a new one."""
    if file.try_lock(fcntl.LOCK_EX):
        if not file.is_current():
            return None
        reason = _build_reason(file, wanted)
        if reason and not _build(file, wanted, reason):
            return None
        return _attach(file, wanted) if file.try_lock(fcntl.LOCK_SH) else None
    if file.try_lock(fcntl.LOCK_SH) and file.is_current():
        segment = _attach(file, wanted)
        if segment is None:  # whoever uses it keeps it, without a name
            _log.warning("packed weights in use are not ours, making new ones", path=str(file.path))
            file.path.unlink(missing_ok=True)
        return segment
    return None


def _build_reason(file: SegmentFile, wanted: Wanted) -> str:
    """Why the file must be built; empty if it is right."""
    if file.size == 0:
        return "new"
    head = file.head()
    if head is None or not head.complete:
        return "half-written" if head else "of another version"
    return "" if _attach(file, wanted) is not None else "stale or damaged"


def _attach(file: SegmentFile, wanted: Wanted) -> Segment | None:
    """The file's weights, if they are whole and the wanted ones."""
    size, head = file.size, file.head()
    if head is None or not plausible(head, size) or not file.is_private:
        return None
    memory = file.map(size, writable=False)
    manifest = read_manifest(head, memory[HEAD_BYTES : HEAD_BYTES + head.manifest_bytes].tobytes())
    layout = wanted.layout
    if manifest is None or manifest.identity != wanted.identity or manifest.places != layout.places:
        return None
    data = memory[head.data_offset : head.data_offset + layout.nbytes]
    if data.size != layout.nbytes or sample_hashes(data, layout.places) != manifest.samples:
        return None
    return Segment(file.path, data, file.file_id, head.data_offset)


def _build(file: SegmentFile, wanted: Wanted, reason: str) -> bool:
    """Write the file anew; False, and no file, if it was told to stop."""
    layout, offset = wanted.layout, data_offset(wanted.layout)
    _log.info("packing experts", path=str(file.path), reason=reason, gigabytes=round(layout.nbytes / 1e9, 3))
    border = page_border(file.fd)
    size = -(-(offset + layout.nbytes) // border) * border
    done = False
    try:
        os.ftruncate(file.fd, 0)
        os.fchmod(file.fd, 0o600)
        wanted.make_room(size)
        os.ftruncate(file.fd, size)
        memory = _map_new(file, size)
        wish_huge_pages(memory)
        done = _write(file, memory, offset, wanted)
    finally:
        if not done:
            file.path.unlink(missing_ok=True)
    return done


def _map_new(file: SegmentFile, size: int) -> NDArray[np.uint8]:
    """Writable; a hugetlbfs reserves its pages here, which somebody may have taken since there was room."""
    try:
        return file.map(size, writable=True)
    except OSError as error:
        raise PlanError(
            f"{file.path}: {format_bytes(size)} cannot be mapped: {error.strerror}",
            remedy="choose another experts.store_dir, or set experts.store=private",
        ) from error


def _write(file: SegmentFile, memory: NDArray[np.uint8], offset: int, wanted: Wanted) -> bool:
    write_head(memory, offset, 0)
    data = memory[offset : offset + wanted.layout.nbytes]
    if not wanted.fill(data, file, offset, lambda written: note_written(memory, written)):
        return False
    places = wanted.layout.places
    manifest = Manifest(wanted.identity, places, sample_hashes(data, places), time.time())
    write_manifest(memory, offset, manifest)
    os.fsync(file.fd)  # on a disk, the flag must not get there before the data
    mark_complete(memory)
    os.fsync(file.fd)
    return True


class _Patience:
    """Waits for another service that builds the same file, as long as it gets on."""

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self._written = -1
        self._since = time.monotonic()

    def wait(self, file: SegmentFile) -> None:
        """Sleep a little; PeerError if the builder has written nothing for `STALL_S`."""
        head = file.head()
        written = head.written if head else 0
        if written != self._written:
            if self._written < 0:
                _log.info("another service packs these experts, waiting for it", path=str(file.path))
            self._written, self._since = written, time.monotonic()
            self._wanted.on_progress(min(1.0, written / max(1, self._wanted.layout.nbytes)))
        elif time.monotonic() - self._since > STALL_S:
            raise PeerError(
                f"{file.path}: another service packs these experts, but wrote nothing for {STALL_S:.0f} s",
                remedy="stop it, or set experts.store=private",
            )
        time.sleep(_POLL_S)
