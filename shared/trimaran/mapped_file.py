"""Large files in memory: mapped where their pages can be huge, and touched before they are needed."""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

HUGE_PAGE = 2 << 20
PAGE = 4096
_MADV_WILLNEED = 3
_MADV_HUGEPAGE = 14
_MADV_POPULATE_READ = 22
_PROT_NONE = 0
_MAP_FIXED = 0x10
_MAP_FAILED = ctypes.c_void_p(-1).value
_STEP = 64 << 20
_THREADS = 4

_libc = ctypes.CDLL(None, use_errno=True)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *3 * (ctypes.c_int,), ctypes.c_long)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def page_border(fd: int) -> int:
    """Bytes of a huge page where the file lies: hugetlbfs has its own."""
    return max(HUGE_PAGE, os.fstatvfs(fd).f_bsize)


def map_file(fd: int, size: int, *, writable: bool, border: int) -> NDArray[np.uint8]:
    """The first `size` bytes of a file, at a multiple of `border`: elsewhere no page can be huge.

    The mapping lives as long as the array, and with it the file's lock, whether or not `fd` is closed.

    Raises:
        OSError: the kernel refuses to map it.
    """
    reserved = _map(None, size + border, _PROT_NONE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1)
    start = -(-reserved // border) * border
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    try:
        _map(start, size, protection, mmap.MAP_SHARED | _MAP_FIXED, fd)
    except OSError:
        _libc.munmap(reserved, size + border)
        raise
    owner = (ctypes.c_uint8 * size).from_address(start)
    # Not at exit, when native threads may still read it.
    weakref.finalize(owner, _libc.munmap, reserved, size + border).atexit = False
    window = np.frombuffer(memoryview(owner), np.uint8)
    window.flags.writeable = writable
    return window


def _map(address: int | None, size: int, protection: int, flags: int, fd: int) -> int:
    mapped: int = _libc.mmap(address, size, protection, flags, fd, 0)
    if mapped == _MAP_FAILED:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return mapped


def wish_huge_pages(memory: NDArray[np.uint8]) -> bool:
    """Ask for huge pages in what is not allocated yet; whether the kernel heard it."""
    return advise(memory, 0, memory.size, _MADV_HUGEPAGE) == 0


def populate_for_reading(
    memory: NDArray[np.uint8], on_bytes: Callable[[int], None], stopped: Callable[[], bool]
) -> None:
    """Map (and, from a disk, read) every page.

    Args:
        on_bytes: takes the size of each piece done. stopped: is asked before each whether to give up.
    """

    def populate(first: int) -> int:
        end = min(first + _STEP, memory.size)
        if stopped():
            return 0
        advise(memory, first, min(end + _STEP, memory.size), _MADV_WILLNEED)
        if advise(memory, first, end, _MADV_POPULATE_READ) != 0:
            memory[first:end:PAGE].max()
        return end - first

    with ThreadPoolExecutor(_THREADS, thread_name_prefix="experts-mapper") as threads:
        for nbytes in threads.map(populate, range(0, memory.size, _STEP)):
            if nbytes:
                on_bytes(nbytes)


def advise(memory: NDArray[np.uint8], first: int, end: int, advice: int) -> int:
    """madvise on the whole pages around [first, end)."""
    address = memory.ctypes.data
    start = (address + first) // PAGE * PAGE
    result: int = _libc.madvise(start, address + end - start, advice)
    return result
