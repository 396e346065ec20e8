"""What the three processes of a server cost: memory, CPU seconds, and their own counters."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Mapping

import psutil
from trimaran.cli.serve import Server

_SAMPLE = re.compile(r"^(trimaran_\w+)(?:\{[^}]*\})? ([0-9.eE+-]+|NaN)", re.MULTILINE)
SERVICES = ("trimaran_gateway", "trimaran_attn", "trimaran_experts")


def service_processes() -> dict[str, psutil.Process]:
    """The services among this process's children, by package."""
    found = {}
    for child in psutil.Process().children(recursive=True):
        for name in SERVICES:
            if name in child.cmdline():
                found[name] = child
    if len(found) != len(SERVICES):
        raise SystemExit(f"the server runs {sorted(found)} only")
    return found


def cpu_seconds(process: psutil.Process) -> float:
    """User and system time so far."""
    times = process.cpu_times()
    return float(times.user + times.system)


def resident_bytes(processes: Mapping[str, psutil.Process]) -> int:
    """Memory of all, mapped files included; a file that two of them map counts once."""
    private, files = 0, dict[str, int]()
    for process in processes.values():
        for mapping in process.memory_maps():
            if mapping.path.startswith("/"):
                files[mapping.path] = max(files.get(mapping.path, 0), mapping.rss)
            else:
                private += mapping.rss
    return private + sum(files.values())


def read_metrics(server: Server) -> dict[str, float]:
    """The exported samples by name, summed over their labels."""
    totals: dict[str, float] = {}
    for name, value in _SAMPLE.findall(_get(f"{server.url}/metrics")):
        totals[name] = totals.get(name, 0.0) + float(value)
    return totals


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=60) as response:  # noqa: S310 - our own server
        text: str = response.read().decode()
        return text
