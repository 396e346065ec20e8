"""The private directory that holds a server's sockets, and the names of the endpoints in it.

A socket here is a key to the model: whoever can write to it can submit work. So the directory belongs to the
user alone (mode 0700), is never a symbolic link, and is refused when somebody else could write to it.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from trimaran.errors import ConfigError

_PREFIX = "trimaran-"
_MAX_SOCKET_PATH = 107  # sun_path holds 108 bytes with its closing zero
_LONGEST_SOCKET_NAME = len("/experts-") + 20 + len(".sock.lock")


class RunDir:
    """An open run directory.

    A fresh one belongs to its maker and goes with all that is in it. A named one may serve several processes:
    whoever made it removes it only if nobody else has anything there.

    Attributes:
        path: absolute path of the directory.
    """

    def __init__(self, path: Path, *, fresh: bool = False, created: bool = False) -> None:
        self.path = path
        self._fresh = fresh
        self._created = created

    def close(self) -> None:
        """Remove what this object made. May be called twice."""
        if self._fresh:
            shutil.rmtree(self.path, ignore_errors=True)
        elif self._created:
            with suppress(OSError):
                self.path.rmdir()
        self._fresh = self._created = False

    def __enter__(self) -> RunDir:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_run_dir(path: str | os.PathLike[str] | None = None) -> RunDir:
    """Open the run directory at `path`, creating it if need be; None makes a fresh one.

    Raises:
        ConfigError: the directory is not private to this user, or its path is too long for a socket.
    """
    if path is None:
        return RunDir(Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_runtime_base())), fresh=True)
    target = Path(path).absolute()
    created = _make_private(target)
    _check_private(target)
    if len(os.fsencode(target)) + _LONGEST_SOCKET_NAME > _MAX_SOCKET_PATH:
        if created:
            target.rmdir()
        raise ConfigError(
            f"run_dir {target}: the path is too long for a Unix socket", remedy="choose a shorter one"
        )
    return RunDir(target, created=created)


def default_run_dir() -> Path:
    """The directory in which services started one by one, without a `run_dir` option, find each other."""
    base = _runtime_base()
    return base / f"{_PREFIX}{os.getuid()}"


def attn_endpoint(run_dir: str | os.PathLike[str], replica: int = 0) -> str:
    """Endpoint where an attention service listens for gateways; `replica` is its place in `attn.replicas`."""
    name = f"attn-{replica}.sock" if replica else "attn.sock"
    return f"ipc://{Path(run_dir).absolute()}/{name}"


def experts_endpoint(run_dir: str | os.PathLike[str], shard: str = "0") -> str:
    """Endpoint where the expert service of `shard` (letters, digits, - and _, 20 at most) listens."""
    if not shard.replace("-", "").replace("_", "").isalnum() or len(shard) > 20:
        raise ConfigError(f"shard name {shard!r}: use up to 20 letters, digits, - and _")
    return f"ipc://{Path(run_dir).absolute()}/experts-{shard}.sock"


def _runtime_base() -> Path:
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.access(runtime, os.W_OK | os.X_OK):
        return Path(runtime)
    return Path(tempfile.gettempdir())


def _make_private(target: Path) -> bool:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.mkdir(mode=0o700)
    except FileExistsError:
        return False
    except OSError as error:
        raise ConfigError(f"run_dir {target}: {error.strerror}", remedy="choose a writable place") from error
    return True


def _check_private(target: Path) -> None:
    info = target.lstat()
    if not stat.S_ISDIR(info.st_mode):
        raise ConfigError(f"run_dir {target}: not a directory", remedy="symbolic links are not followed")
    if info.st_uid != os.getuid():
        raise ConfigError(f"run_dir {target}: belongs to another user (uid {info.st_uid})")
    if info.st_mode & 0o077:
        raise ConfigError(
            f"run_dir {target}: others may enter it (mode {stat.S_IMODE(info.st_mode):04o})",
            remedy=f"chmod 700 {target}",
        )
