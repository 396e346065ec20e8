"""What the supervisor knows of its services' crashes, in a file of the run directory for the gateway."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

import msgspec

FILE_NAME = "crashes.json"


class ServiceCrashes(msgspec.Struct, frozen=True, kw_only=True):
    """How one service has fared since the server started.

    Attributes:
        count: crashes.
        last: how it ended the last time, as in "was killed by SIGSEGV".
        in_loop: it crashes again and again, and is started at longer intervals; the others do its work.
        starts_at: when it starts, or started, after its last crash; seconds of the host's monotonic clock.
    """

    count: int = 0
    last: str = ""
    in_loop: bool = False
    starts_at: float = 0.0

    def explain(self, now: float) -> str:
        """One phrase for people; `now` is on the monotonic clock."""
        times = f"crashed {self.count} time{'s' if self.count != 1 else ''}; last, it {self.last}"
        left = self.starts_at - now
        return f"{times}; starts again in {left:.0f} s" if left > 0 else times


class CrashFile:
    """The file of a run directory.

    Args:
        run_dir: the server's.
    """

    def __init__(self, run_dir: Path | str) -> None:
        self._path = Path(run_dir) / FILE_NAME

    def write(self, services: Mapping[str, ServiceCrashes]) -> None:
        """Replace the file's content, in one go for whoever reads it; by the name of the service."""
        fresh = self._path.with_suffix(".new")
        fresh.write_bytes(msgspec.json.encode(services))
        fresh.replace(self._path)

    def read(self) -> dict[str, ServiceCrashes]:
        """By service; empty without a supervisor that writes it."""
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            return msgspec.json.decode(self._path.read_bytes(), type=dict[str, ServiceCrashes])
        return {}

    def remove(self) -> None:
        """The server is over. May be called twice."""
        self._path.unlink(missing_ok=True)
