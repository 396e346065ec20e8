"""How often each expert is used, from one start to the next."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
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


def heat_path(named: str | None, fingerprint: str, replica: int) -> Path:
    """Where the heat is kept: each attention service has experts, and so a file, of its own.

    Args:
        named: `attn.heat_file`; None: a file for each model, in the user's cache.
        fingerprint: of the model. replica: number of the attention service; the first one adds none.
    """
    if named:
        path = Path(named)
    else:
        cache = os.environ.get("XDG_CACHE_HOME")
        folder = Path(cache) if cache else Path.home() / ".cache"
        path = folder / "trimaran" / f"heat-{sha256(fingerprint.encode()).hexdigest()[:16]}.json"
    return path.with_stem(f"{path.stem}-{replica}") if replica else path


class Heat:
    """Counts by layer and expert.

    Args:
        n_experts: of a layer.
        counts: of earlier starts.
    """

    def __init__(self, n_experts: int, counts: Mapping[int, Sequence[int]] | None = None) -> None:
        self.counts: dict[int, list[int]] = {layer: list(each) for layer, each in (counts or {}).items()}
        self._n_experts = n_experts
        self._seen: dict[tuple[str, int], list[int]] = {}

    def observe(self, source: str, totals: Mapping[int, Sequence[int]]) -> bool:
        """Take counters in that only grow; if they shrank, the source has begun anew.

        Args:
            source: who counts: one that begins anew says nothing about the others.
            totals: by layer and expert, since the source began.

        Returns:
            Whether anything was used since the last time.
        """
        changed = False
        for layer, now in totals.items():
            before = self._seen.get((source, layer), [0] * self._n_experts)
            fresh = any(new < old for new, old in zip(now, before, strict=True))
            grown = now if fresh else [new - old for new, old in zip(now, before, strict=True)]
            counts = self.counts.setdefault(layer, [0] * self._n_experts)
            for expert, more in enumerate(grown):
                counts[expert] += more
            self._seen[source, layer] = list(now)
            changed = changed or any(grown)
        return changed

    def save(self, path: Path, fingerprint: str) -> None:
        """Write it whole, or not at all; a file that cannot be written is a line in the log."""
        content = msgspec.json.encode(HeatFile(VERSION, fingerprint, self.counts))
        # Services in containers may have equal process ids and one cache.
        draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            draft.write_bytes(content)
            draft.replace(path)
        except OSError as error:
            with suppress(OSError):
                draft.unlink(missing_ok=True)
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
