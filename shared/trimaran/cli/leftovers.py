"""A server's claim on its run directory, and the removal of what a killed server left behind."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from pathlib import Path
from types import TracebackType

from trimaran.errors import PeerError

LOCK_NAME = "serve.lock"
DIRECTORY_PATTERN = "trimaran-*"


class RunDirLock:
    """Holds a run directory for one server; the kernel lets go of it when the server dies.

    Raises:
        PeerError: another server holds it.
    """

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / LOCK_NAME
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        if not _try_lock(self._fd):
            os.close(self._fd)
            raise PeerError(f"another server runs in {run_dir}", remedy="stop it, or choose another run_dir")

    def close(self) -> None:
        """Lets go, and removes the lock file."""
        if self._fd >= 0:
            self._path.unlink(missing_ok=True)
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> RunDirLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def remove_dead_run_dirs(base: Path) -> list[Path]:
    """Removes the run directories under `base` whose server is dead; returns them.

    Only directories of this user that hold a server's lock file count: nothing else is touched.
    """
    removed = []
    for directory in sorted(base.glob(DIRECTORY_PATTERN)):
        if _is_abandoned(directory):
            shutil.rmtree(directory, ignore_errors=True)
            removed.append(directory)
    return removed


def _is_abandoned(directory: Path) -> bool:
    with contextlib.suppress(OSError):
        if directory.is_symlink() or directory.stat().st_uid != os.getuid():
            return False
        fd = os.open(directory / LOCK_NAME, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            return _try_lock(fd)
        finally:
            os.close(fd)
    return False


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
