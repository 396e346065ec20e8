"""Where a channel may listen: addresses, and the lock of a socket file."""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import os
from pathlib import Path

from trimaran.errors import ConfigError, PeerError

_MAX_SOCKET_PATH = 107


def split_endpoint(endpoint: str) -> tuple[str, str]:
    """Scheme and address; raises ConfigError for what is no endpoint."""
    scheme, separator, address = endpoint.partition("://")
    if not separator or scheme not in ("ipc", "tcp") or not address:
        raise ConfigError(f"endpoint {endpoint!r}: write ipc:///path.sock or tcp://host:port")
    if scheme == "ipc" and len(os.fsencode(address)) > _MAX_SOCKET_PATH:
        raise ConfigError(f"endpoint {endpoint!r}: longer than the {_MAX_SOCKET_PATH} bytes of a Unix socket")
    return scheme, address


def refuse_open_network(address: str) -> None:
    """Raise ConfigError unless `host:port` is of this host alone."""
    host = address.rpartition(":")[0].strip("[]")
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(host).is_loopback:
            return
    if host == "localhost":
        return
    raise ConfigError(
        f"tcp://{address}: leaves this host, where anyone could read and submit tensors",
        remedy="use 127.0.0.1, or give CURVE keys",
    )


class SocketLock:
    """Keeps a second server off a socket file: binding an ipc endpoint silently replaces the first one's."""

    def __init__(self, socket_path: Path) -> None:
        self._socket_path = socket_path
        self._path = socket_path.with_name(socket_path.name + ".lock")
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._check_still_there()
        except (BlockingIOError, FileNotFoundError) as error:
            os.close(self._fd)
            raise PeerError(f"{socket_path}: another process already serves here") from error

    def _check_still_there(self) -> None:
        # The last holder may have removed the file between our open and our lock: then somebody else's lock
        # on a new file would not exclude ours.
        if not os.path.samestat(os.fstat(self._fd), self._path.stat()):
            raise BlockingIOError

    def release(self) -> None:
        """Remove both files."""
        for path in (self._socket_path, self._path):
            path.unlink(missing_ok=True)
        os.close(self._fd)


def lock_socket_file(address: str) -> SocketLock:
    """Lock a socket file; raises PeerError if it is taken, ConfigError if it cannot be made."""
    try:
        return SocketLock(Path(address))
    except OSError as error:
        raise ConfigError(f"ipc://{address}: cannot listen here: {error.strerror}") from error
