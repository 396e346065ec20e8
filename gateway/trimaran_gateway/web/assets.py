"""The page's files, read once from the package.

Files are served under a path that holds a digest of them all, so that browsers keep them for good, and an
update is seen at once: only the page itself is asked for again, and it names the new path.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable

PREFIX = "/page/"
_INDEX = "index.html"
_PLACEHOLDER = b"{{assets}}"
_MEDIA_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}


@dataclass(frozen=True)
class Asset:
    """One file.

    Attributes:
        etag: a strong validator, quotes included.
    """

    content: bytes
    media_type: str
    etag: str


@dataclass(frozen=True)
class Assets:
    """Everything that the page consists of.

    Attributes:
        index: the page, its links already pointing below `base`.
        base: where the other files are served, e.g. ``/page/0123456789abcdef/``.
        files: the other files by name.
    """

    index: Asset
    base: str
    files: dict[str, Asset]


def load_assets(folder: Traversable | None = None) -> Assets:
    """Read the files of `folder`; None takes those of this package.

    Raises:
        FileNotFoundError: the package was installed without them.
    """
    folder = folder if folder is not None else files("trimaran_gateway") / "web" / "static"
    contents = {
        entry.name: entry.read_bytes()
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name)
        if entry.is_file() and _suffix(entry.name) in _MEDIA_TYPES
    }
    if _INDEX not in contents:
        raise FileNotFoundError(f"the package lacks the page's files: no {folder / _INDEX}")
    base = f"{PREFIX}{_digest(b''.join(name.encode() + content for name, content in contents.items()))}/"
    index = contents.pop(_INDEX).replace(_PLACEHOLDER, base.encode())
    return Assets(
        index=_asset(_INDEX, index),
        base=base,
        files={name: _asset(name, content) for name, content in contents.items()},
    )


def _asset(name: str, content: bytes) -> Asset:
    return Asset(content, _MEDIA_TYPES[_suffix(name)], f'"{_digest(content)}"')


def _suffix(name: str) -> str:
    return name.rpartition(".")[2]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
