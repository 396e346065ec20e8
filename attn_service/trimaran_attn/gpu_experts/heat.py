"""How often each expert is used, from one start to the next."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

import msgspec
from trimaran.telemetry import Log

VERSION = 1
REMEMBERED = 100_000
"""Routes of a layer that a start takes over at most: what is used now soon counts more."""

_log = Log(__name__)


class HeatFile(msgspec.Struct, frozen=True):
    """What is written, as JSON: by layer, the counts of its experts."""

    version: int
    fingerprint: str
    layers: dict[int, list[int]]


def default_path(fingerprint: str) -> Path:
    """A file for each model, in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME")
    folder = Path(cache) if cache else Path.home() / ".cache"
    return folder / "trimaran" / f"heat-{sha256(fingerprint.encode()).hexdigest()[:16]}.json"


class Heat:
    """Counts by layer and expert.

    Args:
        n_experts: of a layer.
        counts: of earlier starts.
    """

    def __init__(self, n_experts: int, counts: Mapping[int, Sequence[int]] | None = None) -> None:
        self.counts: dict[int, list[int]] = {layer: list(each) for layer, each in (counts or {}).items()}
        self._n_experts = n_experts
        self._seen: dict[int, list[int]] = {}

    def observe(self, totals: Mapping[int, Sequence[int]]) -> None:
        """Take counters in that only grow; if they shrank, whoever counts has begun anew."""
        for layer, now in totals.items():
            before = self._seen.get(layer, [0] * self._n_experts)
            fresh = any(new < old for new, old in zip(now, before, strict=True))
            counts = self.counts.setdefault(layer, [0] * self._n_experts)
            for expert, new in enumerate(now):
                counts[expert] += new if fresh else new - before[expert]
            self._seen[layer] = list(now)

    def save(self, path: Path, fingerprint: str) -> None:
        """Write it whole, or not at all; a file that cannot be written is a line in the log."""
        content = msgspec.json.encode(HeatFile(VERSION, fingerprint, self.counts))
        draft = path.with_name(f"{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            draft.write_bytes(content)
            draft.replace(path)
        except OSError as error:
            _log.warning("the experts' heat is not kept", path=str(path), reason=str(error))


def load_heat(path: Path, fingerprint: str, n_experts: int) -> Heat:
    """What was kept of this model, scaled to `REMEMBERED`; empty, with a line in the log, if unusable."""
    try:
        content = msgspec.json.decode(path.read_bytes(), type=HeatFile)
    except FileNotFoundError:
        return Heat(n_experts)
    except (OSError, msgspec.DecodeError) as error:
        return _ignored(path, n_experts, str(error))
    if content.version != VERSION or content.fingerprint != fingerprint:
        return _ignored(path, n_experts, "it is of another model or version")
    if any(len(each) != n_experts or min(each) < 0 for each in content.layers.values()):
        return _ignored(path, n_experts, f"a layer has not {n_experts} counts of 0 or more")
    return Heat(n_experts, {layer: _scaled(each) for layer, each in content.layers.items()})


def _scaled(counts: list[int]) -> list[int]:
    total = max(sum(counts), REMEMBERED)
    return [count * REMEMBERED // total for count in counts]


def _ignored(path: Path, n_experts: int, reason: str) -> Heat:
    _log.warning("the experts' heat begins anew", path=str(path), reason=reason)
    return Heat(n_experts)
