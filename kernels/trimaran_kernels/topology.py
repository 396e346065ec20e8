"""Which CPUs this process may compute on."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from trimaran.cgroup import cpu_quota, quota_cores


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
        count = min(count, quota_cores(quota))
    return [*cores, *siblings][:count]


def _first_of_each_core(cpus: Iterable[int], root: Path) -> list[int]:
    firsts: dict[tuple[str, str], int] = {}
    for cpu in cpus:
        topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
        package = _read(topology / "physical_package_id")
        core = _read(topology / "core_id")
        key = (package, core) if package is not None and core is not None else ("cpu", str(cpu))
        firsts.setdefault(key, cpu)
    return sorted(firsts.values())


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
