"""What the kernel is told about large mappings: huge pages, early allocation, NUMA nodes, locking.

All of it is a wish but `populate_for_writing`: where the kernel refuses, the weights are slower, not wrong.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from trimaran.mapped_file import HUGE_PAGE, PAGE, advise

_MADV_POPULATE_WRITE = 23
_MADV_COLLAPSE = 25
_POLICIES = {"prefer": 1, "bind": 2, "interleave": 3}
_SYS_MBIND = {"x86_64": 237, "aarch64": 235}
_BUSY = (errno.EAGAIN, errno.EBUSY)
"""Why one page stays small where the next need not."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.mlock.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.syscall.restype = ctypes.c_long


def place_on_nodes(memory: NDArray[np.uint8], nodes: Sequence[int], policy: str) -> bool:
    """Allocate the mapping's pages on these NUMA nodes.

    Args:
        policy: all there ("bind"), there as far as they fit ("prefer", one node), or in turn ("interleave").

    Returns:
        Whether it is so; "default" asks for nothing.
    """
    number, mode = _SYS_MBIND.get(os.uname().machine), _POLICIES.get(policy)
    if not nodes or number is None or mode is None:
        return False
    words = [0] * (max(nodes) // 64 + 1)
    for node in nodes:
        words[node // 64] |= 1 << (node % 64)
    mask = (ctypes.c_ulong * len(words))(*words)
    result = _libc.syscall(
        ctypes.c_long(number),
        ctypes.c_void_p(memory.ctypes.data),
        ctypes.c_ulong(memory.size),
        ctypes.c_int(mode),
        mask,
        ctypes.c_ulong(len(words) * 64 + 1),
        ctypes.c_uint(0),
    )
    return bool(result == 0)


def lock_in_memory(memory: NDArray[np.uint8]) -> str:
    """Forbid swapping the mapping out; empty, or why not."""
    return "" if _libc.mlock(memory.ctypes.data, memory.size) == 0 else os.strerror(ctypes.get_errno())


def populate_for_writing(memory: NDArray[np.uint8], first: int, end: int, fd: int, file_offset: int) -> None:
    """Allocate the pages of [first, end) now, so that a full tmpfs is an OSError here and no SIGBUS later.

    Args:
        fd, file_offset: the file behind it, for kernels before 5.14; -1 if there is none.
    """
    if fd >= 0:
        _make_huge(memory, first, end)
    if advise(memory, first, end, _MADV_POPULATE_WRITE) == 0:
        return
    if ctypes.get_errno() != errno.EINVAL:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if fd >= 0:
        os.posix_fallocate(fd, file_offset + first, end - first)


def _make_huge(memory: NDArray[np.uint8], first: int, end: int) -> None:
    """Make huge pages of the file's part around [first, end); its mapping begins on a border of them.

    A tmpfs is rarely mounted with huge pages, and then gives none at first touch; but it collapses small ones
    (Linux 6.1), also where only one of a huge page exists, and on that one's node. No byte changes.
    """
    address = memory.ctypes.data
    start = (address + first) // HUGE_PAGE * HUGE_PAGE
    stop = -(-(address + end) // HUGE_PAGE) * HUGE_PAGE
    for page in range(start, stop, HUGE_PAGE):
        touched = page + PAGE * small_page(page // HUGE_PAGE)
        if _libc.madvise(touched, PAGE, _MADV_POPULATE_WRITE) != 0:
            return
        if _libc.madvise(page, HUGE_PAGE, _MADV_COLLAPSE) != 0 and ctypes.get_errno() not in _BUSY:
            return


def small_page(huge_page: int) -> int:
    """Which small page of a huge one to touch first.

    Interleaving gives small pages to nodes by their numbers. If it were always a huge page's first, all huge
    pages would lie on one node wherever the number of nodes divides 512: so it is one at random.
    """
    return (huge_page * 2654435761 >> 16) % (HUGE_PAGE // PAGE)


def huge_page_bytes(memory: NDArray[np.uint8], smaps: Path = Path("/proc/self/smaps")) -> int:
    """Bytes of the mapping that lie in huge pages."""
    address, found, total = memory.ctypes.data, False, 0
    for line in smaps.read_text().splitlines():
        header = re.match(r"^([0-9a-f]+)-([0-9a-f]+) ", line)
        if header:
            found = int(header[1], 16) < address + memory.size and int(header[2], 16) > address
        elif found:
            counted = re.match(r"^(AnonHugePages|ShmemPmdMapped|FilePmdMapped|\w+_Hugetlb):\s+(\d+) kB", line)
            total += int(counted[2]) << 10 if counted else 0
    return min(total, memory.size)
