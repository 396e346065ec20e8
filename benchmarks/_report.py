"""What every benchmark shares: the machine's facts, a table for people and a JSON file for comparisons."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

BENCH_DIR = Path("build/bench")
_TABLE_WIDTH = 120  # narrower, its cells would be cut


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One measured figure.

    ratio: how many times better than the peer, above 1 where we are; of_floor: how near the value is to what
    the hardware allows, 1 being there.
    """

    case: str
    value: float
    unit: str
    peer: str | None = None
    peer_value: float | None = None
    ratio: float | None = None
    floor: float | None = None
    of_floor: float | None = None


class Report:
    """Collects rows, prints them as a table and writes them as `build/bench/<name>.json`."""

    def __init__(self, name: str, **facts: Any) -> None:
        self.name = name
        self.machine = {**machine_facts(), **facts}
        self.rows: list[Row] = []

    def row(
        self,
        case: str,
        value: float,
        unit: str,
        *,
        peer: str | None = None,
        peer_value: float | None = None,
        floor: float | None = None,
        higher_is_better: bool = False,
    ) -> Row:
        """Add a figure.

        Args:
            case: what was measured, with its parameters.
            value: the median of the repetitions.
            unit: of value, peer_value and floor, e.g. "us", "GB/s".
            peer: another way to do the same, named, and its figure `peer_value`.
            floor: the hardware's limit: the least possible time, or the greatest possible rate.
            higher_is_better: True for rates: more than the peer's and near the floor is good, else less is.
        """

        def against(other: float | None) -> float | None:
            if not other or not value:
                return None
            return value / other if higher_is_better else other / value

        added = Row(
            case=case,
            value=value,
            unit=unit,
            peer=peer,
            peer_value=peer_value,
            ratio=against(peer_value),
            floor=floor,
            of_floor=against(floor),
        )
        self.rows.append(added)
        return added

    def write(self, path: Path | None = None) -> Path:
        """Print the table and write the JSON file, by default `build/bench/<name>.json`; returns its path."""
        path = self.save(path)
        self._print(path)
        return path

    def save(self, path: Path | None = None) -> Path:
        """Write the JSON file without printing: never half a file, even if this process is killed."""
        path = path or BENCH_DIR / f"{self.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        body = msgspec.json.encode({"machine": self.machine, "rows": self.rows})
        draft = path.with_name(path.name + ".new")
        draft.write_bytes(msgspec.json.format(body, indent=2) + b"\n")
        return draft.replace(path)

    def _print(self, path: Path) -> None:
        table = Table(title=self.name, caption=str(path))
        table.add_column("case")
        for column in ("value", "unit", "peer", "ratio", "floor", "of floor"):
            table.add_column(column, justify="right")
        for row in self.rows:
            peer = f"{row.peer} {_number(row.peer_value)}" if row.peer else ""
            of_floor = "" if row.of_floor is None else f"{row.of_floor:.0%}"
            table.add_row(
                row.case, _number(row.value), row.unit, peer, _number(row.ratio), _number(row.floor), of_floor
            )
        console = Console()
        console.print(table, width=max(console.width, _TABLE_WIDTH))


def machine_facts() -> dict[str, Any]:
    """CPU, memory, kernel and load: what a reader needs to judge the figures."""
    return {
        "cpu": _cpu_model(),
        "cpus_usable": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_1min": os.getloadavg()[0],
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
