"""What lies in a store's directory, and its removal; never of what somebody uses."""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trimaran.errors import ConfigError

from trimaran_experts.store.manifest import HEAD_BYTES, Head, Manifest, plausible, read_manifest
from trimaran_experts.store.segment import SUFFIX, SegmentFile

State = Literal["in use", "ready", "half-written"]


@dataclass(frozen=True)
class Entry:
    """One segment. `manifest` is None while it is not whole."""

    path: Path
    nbytes: int
    state: State
    manifest: Manifest | None


def list_segments(directory: Path) -> list[Entry]:
    """Every segment of this user in the directory; none if there is no such directory."""
    entries = []
    for path in sorted(directory.glob(f"*{SUFFIX}")):
        try:
            file = SegmentFile(path, create=False)
        except ConfigError:
            continue  # gone meanwhile, or not ours
        entries.append(_describe(file))
        file.close()
    return entries


def purge(directory: Path) -> tuple[list[Entry], list[Entry]]:
    """Remove every segment that nobody uses.

    Returns:
        What was removed, and what was kept because it is in use.
    """
    removed: list[Entry] = []
    kept: list[Entry] = []
    for entry in list_segments(directory):
        (removed if remove_unused(entry.path) else kept).append(entry)
    return removed, kept


def remove_dead(directory: Path) -> list[Path]:
    """Remove what killed builders left half-written."""
    dead = [entry.path for entry in list_segments(directory) if entry.state == "half-written"]
    return [path for path in dead if remove_unused(path, half_written_only=True)]


def _describe(file: SegmentFile) -> Entry:
    used = os.fstat(file.fd).st_blocks * 512
    if not file.try_lock(fcntl.LOCK_EX):
        return Entry(file.path, used, "in use", _manifest(file, file.head()))
    head = file.head()
    manifest = _manifest(file, head)
    return Entry(file.path, used, "ready" if manifest else "half-written", manifest)


def _manifest(file: SegmentFile, head: Head | None) -> Manifest | None:
    if head is None or not plausible(head, file.size):
        return None
    return read_manifest(head, os.pread(file.fd, head.manifest_bytes, HEAD_BYTES))


def remove_unused(path: Path, *, half_written_only: bool = False) -> bool:
    """Whether the file was nobody's and is gone."""
    try:
        file = SegmentFile(path, create=False)
    except ConfigError:
        return False
    try:
        if not file.try_lock(fcntl.LOCK_EX) or not file.is_current():
            return False
        if half_written_only and _manifest(file, file.head()) is not None:
            return False
        path.unlink(missing_ok=True)
        return True
    finally:
        file.close()
