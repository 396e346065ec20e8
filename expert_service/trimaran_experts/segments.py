"""`trimaran experts --list` and `--purge`: the packed experts that were kept, shown and removed."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from pathlib import Path

from trimaran.config import Config
from trimaran.units import format_bytes

from trimaran_experts.store.catalog import Entry, list_segments, purge
from trimaran_experts.store.rooms import default_directory


def show(config: Config) -> None:
    """Print every kept segment: size, state, model, shard, age, path."""
    entries = [entry for directory in _directories(config) for entry in list_segments(directory)]
    if not entries:
        sys.stdout.write("no packed experts are kept\n")
    _write(entries, "")


def remove(config: Config) -> None:
    """Remove every segment that nobody uses, and print what became of each."""
    removed: list[Entry] = []
    for directory in _directories(config):
        gone, kept = purge(directory)
        removed += gone
        _write(gone, "removed ")
        _write(kept, "kept ")
    sys.stdout.write(f"{format_bytes(sum(entry.nbytes for entry in removed))} are free again\n")


def _directories(config: Config) -> list[Path]:
    """Where the configuration puts segments; unless it says, the places of every kind of store."""
    if config.experts.store_dir:
        return [Path(config.experts.store_dir).absolute()]
    return [default_directory("tmpfs"), default_directory("file")]


def _write(entries: Iterable[Entry], verb: str) -> None:
    for entry in entries:
        sys.stdout.write(
            f"{verb}{format_bytes(entry.nbytes):>9}  {entry.state:12}  {_what(entry)}{entry.path}\n"
        )


def _what(entry: Entry) -> str:
    if entry.manifest is None:
        return ""
    identity, hours = entry.manifest.identity, (time.time() - entry.manifest.created) / 3600
    shard = "all experts" if identity.shard == "0" else f"shard {identity.shard}"
    return f"{identity.model}, {shard}, {hours:.1f} h old  "
