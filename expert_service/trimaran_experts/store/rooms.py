"""Which kind of memory holds the weights, and whether there is room for them."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trimaran.arena import file_system
from trimaran.errors import ConfigError, PlanError
from trimaran.units import format_bytes

Kind = Literal["tmpfs", "file", "private", "off"]
Store = Literal["auto", "tmpfs", "file", "private", "off"]

KEEP_FROM = 256 << 20
"""Smaller models pack in a blink: nothing of them is kept."""

HUGETLBFS = "hugetlbfs"
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - the tmpfs of every Linux


@dataclass(frozen=True)
class Choice:
    """Where the weights go; `why` is a phrase for the log."""

    kind: Kind
    why: str


def choose(store: Store, nbytes: int, tmpfs_free: int, ram_available: int, *, sliced: bool) -> Choice:
    """The kind of store.

    Args:
        nbytes: what the weights take. tmpfs_free: room in the store's directory, with what may be replaced.
        sliced: the shard owns some columns only, so that the file's own bytes do not do.

    Raises:
        ConfigError: `off` for a slice of columns.
    """
    if store == "off" and sliced:
        raise ConfigError(
            "experts.store is off, but a shard of columns needs a copy", remedy="set it to auto"
        )
    if store != "auto":
        return Choice(store, "as configured")
    if nbytes > ram_available and not sliced:
        return Choice("off", f"{format_bytes(nbytes)} do not fit in {format_bytes(ram_available)} of RAM")
    if nbytes < KEEP_FROM:
        return Choice("private", "a small model is packed in a moment")
    if nbytes > tmpfs_free:
        return Choice(
            "private", f"{format_bytes(nbytes)} do not fit in a tmpfs of {format_bytes(tmpfs_free)}"
        )
    return Choice("tmpfs", "kept for the next start")


def check_room(kind: Kind, directory: Path | None, needed: int, ram_available: int) -> None:
    """Refuses what cannot fit.

    Raises:
        PlanError: with what is there and what to do.
    """
    remedy = "take a smaller quantisation, split the experts over several hosts, or set experts.store=off"
    takes_ram = kind == "private" or (directory is not None and file_system(directory) == "tmpfs")
    if takes_ram and needed > ram_available:
        raise PlanError(
            f"packed experts take {format_bytes(needed)}, but {format_bytes(ram_available)} of RAM are free",
            remedy=f"free what old starts left with `trimaran experts --purge`, {remedy}",
        )
    free = needed if directory is None else free_bytes(directory)
    if needed > free:
        grow = "raise vm.nr_hugepages" if _is_hugetlbfs(directory) else "enlarge it"
        raise PlanError(
            f"packed experts take {format_bytes(needed)}, but {directory} has room for {format_bytes(free)}",
            remedy=f"`trimaran experts --list` shows what is there; {grow}, choose another"
            " experts.store_dir, or set experts.store=private",
        )


def _is_hugetlbfs(directory: Path | None) -> bool:
    return directory is not None and file_system(directory) == HUGETLBFS


def free_bytes(directory: Path, root: Path = Path("/")) -> int:
    """Room in the file system of the nearest existing folder; `root` stands in for `/` in tests."""
    while not directory.exists():
        directory = directory.parent
    room = os.statvfs(directory)
    free = room.f_bavail * room.f_frsize
    if file_system(directory) != HUGETLBFS:
        return free
    pages = huge_pages_free(room.f_bsize, root) * room.f_bsize
    return min(free, pages) if room.f_blocks else pages  # mounted without a size it counts nothing


def huge_pages_free(size: int, root: Path = Path("/")) -> int:
    """Huge pages of this size that a new file may take: those in the pool, and those it may grow by."""
    folder = root / "sys/kernel/mm/hugepages" / f"hugepages-{size >> 10}kB"

    def count(name: str) -> int:
        try:
            return int((folder / name).read_text())
        except (OSError, ValueError):
            return 0

    growth = max(0, count("nr_overcommit_hugepages") - count("surplus_hugepages"))
    return max(0, count("free_hugepages") - count("resv_hugepages")) + growth


def default_directory(kind: Kind, environ: Callable[[str], str | None] = os.environ.get) -> Path:
    """Where segments of this kind go unless the configuration says otherwise."""
    if kind == "file":
        cache = environ("XDG_CACHE_HOME")
        return (Path(cache) if cache else Path.home() / ".cache") / "trimaran"
    return _SHARED_MEMORY / f"trimaran-experts-{os.getuid()}"


def open_directory(kind: Kind, configured: str | None) -> Path:
    """The directory, made private to this user.

    Raises:
        ConfigError: it is another user's, open to others, no tmpfs though it should be, or cannot be made.
    """
    path = Path(configured).absolute() if configured else default_directory(kind)
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        info = path.lstat()
    except OSError as error:
        raise ConfigError(f"experts.store_dir {path}: {error.strerror}", remedy="choose another") from error
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid():
        raise ConfigError(
            f"experts.store_dir {path}: is not a directory of this user", remedy="choose another"
        )
    if info.st_mode & 0o077:
        raise ConfigError(f"experts.store_dir {path}: others may enter it", remedy=f"chmod 700 {path}")
    if kind == "tmpfs" and file_system(path) not in ("tmpfs", HUGETLBFS):
        raise ConfigError(
            f"experts.store_dir {path}: is neither a tmpfs nor a hugetlbfs",
            remedy="choose another, or set experts.store=file",
        )
    return path
