"""What the process's control groups grant it: versions 1 and 2, in a container or outside."""

from __future__ import annotations

import math
from pathlib import Path


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Cores' worth of time that the process's cgroup and its ancestors grant; None: no limit.

    Args:
        root: where `sys` and `proc` are found (tests).
    """
    quotas = [quota for folder in _folders(root) if (quota := _folder_quota(folder)) is not None]
    return min(quotas, default=None)


def quota_cores(quota: float) -> int:
    """Threads that a quota of so many cores is worth: a part of a core counts as one.

    The thread on it is stopped for a part of each period, and what it does until then still helps.
    """
    return max(1, math.ceil(quota))


def memory_limit(root: Path = Path("/")) -> int | None:
    """Bytes that the process's cgroup and its ancestors grant; None: no limit."""
    names = ("memory.max", "memory.limit_in_bytes")
    texts = [_text(folder / name) for folder in _folders(root) for name in names]
    return min((int(text) for text in texts if text.isdigit()), default=None)


def _folders(root: Path) -> list[Path]:
    """The folders of this process's groups, each with its ancestors: any may limit it.

    In a container the mount often shows only the group's own part of the tree, so its root counts too.
    """
    base = root / "sys/fs/cgroup"
    folders = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        hierarchies = ["", "unified"] if number == "0" else [controllers, *controllers.split(",")]
        parts = Path(path.lstrip("/")).parts
        for hierarchy in hierarchies:
            folders += [(base / hierarchy).joinpath(*parts[:depth]) for depth in range(len(parts) + 1)]
    return list(dict.fromkeys(folders)) or [base]


def _folder_quota(folder: Path) -> float | None:
    text = _text(folder / "cpu.max")  # version 2: "max 100000" or "150000 100000"
    if not text:
        text = f"{_text(folder / 'cpu.cfs_quota_us')} {_text(folder / 'cpu.cfs_period_us')}"
    match text.split():
        case [quota, period] if quota.isdigit() and period.isdigit() and int(period) > 0:
            return int(quota) / int(period)
        case _:
            return None


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
