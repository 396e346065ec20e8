"""The files of the chat page and of the API's reference, read once from the package.

Files are served under a path that holds a digest of them all, so that browsers keep them for good, and an
update is seen at once: only the pages themselves are asked for again, and they name the new path.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable

PREFIX = "/page/"
_INDEX = "index.html"
_REFERENCE = "reference.html"
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
    """Everything that the pages consist of.

    Attributes:
        index: the chat page, its links already pointing below `base`.
        reference: the frame of the API's reference, its links too.
        base: where the other files are served, e.g. ``/page/0123456789abcdef/``.
        files: the other files by name.
    """

    index: Asset
    reference: Asset
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
    for page in (_INDEX, _REFERENCE):
        if page not in contents:
            raise FileNotFoundError(f"the package lacks the page's files: no {folder / page}")
    base = f"{PREFIX}{_digest(b''.join(name.encode() + content for name, content in contents.items()))}/"
    index, reference = (
        make_asset(page, contents.pop(page).replace(_PLACEHOLDER, base.encode()))
        for page in (_INDEX, _REFERENCE)
    )
    return Assets(
        index=index,
        reference=reference,
        base=base,
        files={name: make_asset(name, content) for name, content in contents.items()},
    )


def make_asset(name: str, content: bytes) -> Asset:
    """An asset from its content; the name's suffix says what it is."""
    return Asset(content, _MEDIA_TYPES[_suffix(name)], f'"{_digest(content)}"')


def _suffix(name: str) -> str:
    return name.rpartition(".")[2]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
