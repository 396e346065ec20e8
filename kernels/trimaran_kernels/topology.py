"""Which CPUs this process may compute on."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path


def usable_cpus(
    limit: int | None = None, *, among: Iterable[int] | None = None, root: Path = Path("/")
) -> list[int]:
    """CPUs for a thread pool: those this process may use, one per physical core, within the cgroup's quota.

    Args:
        limit: take no more than this many; beyond the physical cores, their siblings follow.
        among: take only of these; None: of all.
        root: where `sys` and `proc` are found (tests).

    Returns:
        CPU numbers, at least one unless `among` has none; first of each core first, in ascending order.
    """
    allowed = sorted(os.sched_getaffinity(0) if among is None else os.sched_getaffinity(0) & set(among))
    cores = _first_of_each_core(allowed, root)
    siblings = [cpu for cpu in allowed if cpu not in cores]
    count = len(cores) if limit is None else max(1, limit)
    quota = cpu_quota(root)
    if quota is not None:
        count = min(count, max(1, math.ceil(quota)))
    return [*cores, *siblings][:count]


def cpu_quota(root: Path = Path("/")) -> float | None:
    """CPUs' worth of time that the process's cgroup and its ancestors allow; None if they set no limit."""
    quotas = [quota for folder in _cgroup_folders(root) if (quota := _folder_quota(folder)) is not None]
    return min(quotas, default=None)


def _first_of_each_core(cpus: Iterable[int], root: Path) -> list[int]:
    firsts: dict[tuple[str, str], int] = {}
    for cpu in cpus:
        topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
        package = _read(topology / "physical_package_id")
        core = _read(topology / "core_id")
        key = (package, core) if package is not None and core is not None else ("cpu", str(cpu))
        firsts.setdefault(key, cpu)
    return sorted(firsts.values())


def _cgroup_folders(root: Path) -> list[Path]:
    """The process's cgroup and its ancestors, of version 2 and of version 1's cpu controller."""
    folders: list[Path] = []
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mounts = [root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"]
        elif "cpu" in controllers.split(","):
            mounts = [root / f"sys/fs/cgroup/{controllers}", root / "sys/fs/cgroup/cpu"]
        else:
            continue
        for mount in mounts:
            parts = Path(path.lstrip("/")).parts
            # In a container the mount often shows only the cgroup's own part of the tree: try its root too.
            folders += [mount.joinpath(*parts[:depth]) for depth in range(len(parts) + 1)]
    return folders


def _folder_quota(folder: Path) -> float | None:
    maximum = _read(folder / "cpu.max")
    if maximum is not None:
        quota, period = maximum.split()
        return None if quota == "max" else int(quota) / int(period)
    quota_us = _read(folder / "cpu.cfs_quota_us")
    period_us = _read(folder / "cpu.cfs_period_us")
    if quota_us is None or period_us is None or int(quota_us) <= 0:
        return None
    return int(quota_us) / int(period_us)


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
