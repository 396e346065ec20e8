"""The shared-memory file through which tensors cross from the attention service to the expert service.

The attention service creates it on a tmpfs (mode 0600) and removes it at exit; a lock held on the file for
its creator's life tells a living arena from one that a crash left behind. The layout, little-endian, in
bytes, which `kernels/csrc/hop/arena.h` states too:

    0                   header: magic "TRIARENA", then u32 version, dtype (0 f32, 1 bf16), hidden size, top_k,
                        max_tokens, n_slots, then u64 slot stride, file size;
                        at 64 the bell word, at 128 the server's sleeping word, at 192 the word that is not 0
                        while a step is in flight, at 256 the one that is not 0 once the client has given the
                        arena up, all u32
    4096 + i · stride   slot i: at 0 the client's line (u32 request sequence, i32 layer, u32 n_tokens),
                        at 64 the server's (u32 done sequence, i32 status), at 128 the client's sleeping word
                        (u32), then x, ids, weights and y, each on its own 64-byte border

where stride is a slot's size rounded up to a page.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import secrets
import struct
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from trimaran.errors import PeerError

ElementType = Literal["f32", "bf16"]

MAGIC = b"TRIARENA"
VERSION = 2
_HEADER = struct.Struct("<8s6I2Q")
_PAGE = 4096
_LINE = 64
_CONTROL_BYTES = 192
_PREFIX = "trimaran-arena-"
_DTYPE_CODES: dict[ElementType, int] = {"f32": 0, "bf16": 1}
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - the tmpfs that POSIX shared memory lives in


@dataclass(frozen=True)
class ArenaDims:
    """What an arena holds: `n_slots` slots of up to `max_tokens` tokens each."""

    hidden_size: int
    top_k: int
    max_tokens: int
    n_slots: int
    dtype: ElementType

    @property
    def element(self) -> np.dtype[np.float32] | np.dtype[np.uint16]:
        """NumPy type of x and y; bf16 travels as its bits."""
        return np.dtype(np.float32) if self.dtype == "f32" else np.dtype(np.uint16)


@dataclass(frozen=True)
class ArenaLayout:
    """Offsets of the tensors within a slot, and sizes, in bytes."""

    x: int
    ids: int
    weights: int
    y: int
    slot_stride: int
    file_bytes: int

    @classmethod
    def of(cls, dims: ArenaDims) -> ArenaLayout:
        """The layout that follows from `dims`."""
        vectors = dims.max_tokens * dims.hidden_size * dims.element.itemsize
        routes = dims.max_tokens * dims.top_k * 4
        ids = _round_up(_CONTROL_BYTES + vectors, _LINE)
        weights = _round_up(ids + routes, _LINE)
        y = _round_up(weights + routes, _LINE)
        stride = _round_up(y + vectors, _PAGE)
        return cls(_CONTROL_BYTES, ids, weights, y, stride, _PAGE + stride * dims.n_slots)


@dataclass(frozen=True)
class SlotViews:
    """A slot's tensors, straight in the shared memory.

    Attributes:
        x, y: [max_tokens, hidden_size], float32, or uint16 holding the bits of bf16.
        ids: int32 [max_tokens, top_k]. weights: float32 [max_tokens, top_k].
    """

    x: NDArray[np.float32] | NDArray[np.uint16]
    ids: NDArray[np.int32]
    weights: NDArray[np.float32]
    y: NDArray[np.float32] | NDArray[np.uint16]


class Arena:
    """A fresh arena, owned by this process until `close`.

    Args:
        directory: a tmpfs directory; see `arena_directory`.

    Raises:
        PeerError: the tmpfs has no room for it, or the file cannot be made.
    """

    def __init__(self, dims: ArenaDims, directory: str | os.PathLike[str]) -> None:
        self.dims = dims
        self.layout = ArenaLayout.of(dims)
        self._fd, self.path = _create_locked(Path(directory))
        try:
            # Reserved now: a tmpfs that is full later would kill both processes with SIGBUS.
            os.posix_fallocate(self._fd, 0, self.layout.file_bytes)
            self._memory = mmap.mmap(self._fd, self.layout.file_bytes)
            self._memory[: _HEADER.size] = self._header()
        except OSError as error:
            self.close()
            raise PeerError(
                f"arena {self.path}: cannot reserve {self.layout.file_bytes} bytes: {error.strerror}",
                remedy="make room there (in a container: a larger shm_size), or lower attn.max_step_tokens",
            ) from error
        self._views = [self._slot_views(slot) for slot in range(dims.n_slots)]

    def slot(self, index: int) -> SlotViews:
        """The tensors of one slot. They keep the memory mapped, even after `close`."""
        return self._views[index]

    @property
    def memory(self) -> NDArray[np.uint8]:
        """All of the mapping, which lasts as long as any view of it."""
        return np.frombuffer(self._memory, np.uint8)

    def slot_start(self, index: int) -> int:
        """Where a slot begins, in bytes from the arena's start."""
        return _PAGE + index * self.layout.slot_stride

    def close(self) -> None:
        """Remove the file. May be called twice."""
        if self._fd >= 0:
            self.path.unlink(missing_ok=True)
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Arena:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _header(self) -> bytes:
        dims, layout = self.dims, self.layout
        return _HEADER.pack(
            MAGIC,
            VERSION,
            _DTYPE_CODES[dims.dtype],
            dims.hidden_size,
            dims.top_k,
            dims.max_tokens,
            dims.n_slots,
            layout.slot_stride,
            layout.file_bytes,
        )

    def _slot_views(self, slot: int) -> SlotViews:
        dims, layout = self.dims, self.layout
        base = self.slot_start(slot)
        vectors, routes = (dims.max_tokens, dims.hidden_size), (dims.max_tokens, dims.top_k)
        return SlotViews(
            x=np.ndarray(vectors, dims.element, self._memory, base + layout.x),
            ids=np.ndarray(routes, np.int32, self._memory, base + layout.ids),
            weights=np.ndarray(routes, np.float32, self._memory, base + layout.weights),
            y=np.ndarray(vectors, dims.element, self._memory, base + layout.y),
        )


def arena_directory(run_dir: str | os.PathLike[str]) -> Path:
    """Where arenas of `run_dir` go: there if it is on a tmpfs, else /dev/shm.

    Raises:
        PeerError: neither is a tmpfs.
    """
    for directory in (Path(run_dir), _SHARED_MEMORY):
        if is_tmpfs(directory):
            return directory
    raise PeerError(
        f"neither {run_dir} nor {_SHARED_MEMORY} is a tmpfs, which the arena needs",
        remedy="mount one, or set experts.notifier to tcp",
    )


def is_tmpfs(directory: str | os.PathLike[str]) -> bool:
    """Whether `directory` is there and lies on a tmpfs."""
    return file_system(directory) == "tmpfs" and Path(directory).is_dir()


def file_system(path: str | os.PathLike[str]) -> str:
    """The kind of file system that `path` lies on, e.g. tmpfs, as /proc/self/mountinfo tells."""
    target = Path(path).resolve()
    longest, kind = -1, ""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        mount = Path(before.split(" ")[4].encode().decode("unicode_escape"))
        if (target == mount or mount in target.parents) and len(mount.parts) >= longest:
            longest, kind = len(mount.parts), after.split(" ")[0]
    return kind


def remove_leftovers(directory: str | os.PathLike[str]) -> list[Path]:
    """Remove arenas in `directory` whose creator is gone; what is alive or another user's stays.

    Returns:
        The files that were removed.
    """
    return [path for path in Path(directory).glob(f"{_PREFIX}*") if _remove_if_dead(path)]


def _remove_if_dead(path: Path) -> bool:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        if os.fstat(fd).st_uid != os.getuid() or not _lock(fd, path):
            return False
        path.unlink(missing_ok=True)
    finally:
        os.close(fd)
    return True


def _create_locked(directory: Path) -> tuple[int, Path]:
    while True:
        path = directory / f"{_PREFIX}{os.getpid()}-{secrets.token_hex(6)}"
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise PeerError(f"arena {path}: cannot be created: {error.strerror}") from error
        if _lock(fd, path):
            return fd, path
        os.close(fd)  # a cleaner took it for a leftover between the two calls


def _lock(fd: int, path: Path) -> bool:
    """Take the life lock of the file at `path`; False if somebody holds it or the file is no longer there."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(fd), path.stat())
    except (BlockingIOError, FileNotFoundError):
        return False


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step
