"""Children's log lines, made readable for the terminal of the server that runs them."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass

_HIDDEN = {"ts", "level", "service", "logger", "message", "traceback"}


@dataclass(frozen=True)
class LogLine:
    """One line of a service. A line that is no JSON record has the level `info` and no fields."""

    service: str
    level: str
    message: str
    fields: Mapping[str, object]
    raw: str
    ts: float
    traceback: str = ""

    @property
    def is_ready(self) -> bool:
        """Whether the service says with it that it serves now."""
        return self.message.startswith("ready")

    def text(self) -> str:
        """`14:20:03 attn     ready device=cpu`, and a traceback below it if there is one."""
        clock = time.strftime("%H:%M:%S", time.localtime(self.ts))
        level = "" if self.level == "info" else f"{self.level}: "
        fields = "".join(f" {name}={value}" for name, value in self.fields.items())
        return f"{clock} {self.service:8} {level}{self.message}{fields}" + (
            f"\n{self.traceback}" if self.traceback else ""
        )


def parse_log_line(service: str, raw: str) -> LogLine:
    """Reads a line that a service wrote: a JSON record of `trimaran.telemetry`, or anything else."""
    try:
        entry = json.loads(raw)
    except ValueError:
        entry = None
    if not isinstance(entry, dict) or "message" not in entry:
        return LogLine(service, "info", _printable(raw), {}, raw, time.time())
    ts = entry.get("ts")
    return LogLine(
        service=service,
        level=str(entry.get("level", "info")),
        message=_printable(str(entry["message"])),
        fields={name: value for name, value in entry.items() if name not in _HIDDEN},
        raw=raw,
        ts=float(ts) if isinstance(ts, (int, float)) else time.time(),
        traceback=str(entry.get("traceback", "")),
    )


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text)
