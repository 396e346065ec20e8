"""What this machine offers: cores, instruction sets, memory, NUMA nodes, GPUs, and the limits of its cgroup.

Everything is read from `/proc` and `/sys` below a root that tests replace; GPUs are asked of `nvidia-smi`.
"""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from trimaran.cgroup import cpu_quota, memory_limit, quota_cores

_ISA_FLAGS = {
    "avx2": ("avx2", "fma", "f16c"),
    "avx_vnni": ("avx2", "avx_vnni"),
    "avx512": ("avx512f", "avx512bw", "avx512vl", "avx512dq"),
    "avx512_vnni": ("avx512f", "avx512_vnni"),
    "avx512_bf16": ("avx512f", "avx512_bf16"),
    "amx": ("amx_tile", "amx_int8", "amx_bf16"),
}
_GPU_QUERY = "name,memory.total,memory.free,compute_cap,driver_version,uuid"


@dataclass(frozen=True)
class Memory:
    """Bytes. `limit` is what this process may use at most: the machine's total or its cgroup's limit."""

    total: int
    available: int
    limit: int
    huge_pages_free: int
    huge_page_size: int
    transparent_huge_pages: str


@dataclass(frozen=True)
class NumaNode:
    """One memory node.

    Attributes:
        cpus: that are online; none where a node is memory alone (CXL, HBM).
        memory: bytes; 0 where there is none, or a cpuset keeps this process from it.
        available: bytes of it that are free, or hold pages of files; None if the system does not say.
    """

    number: int
    cpus: tuple[int, ...]
    memory: int
    available: int | None = None


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU; memory in bytes, `capability` such as `9.0`."""

    name: str
    memory: int
    memory_free: int
    capability: str
    driver: str
    uuid: str = ""


@dataclass(frozen=True)
class Machine:
    """The whole.

    Attributes:
        cpu: model name of the processor.
        isas: names of instruction sets, least first: avx2, avx_vnni, avx512, avx512_vnni, avx512_bf16, amx.
        cpus: numbers of the CPUs that this process may run on.
        cpu_quota: cores' worth of time that the cgroup grants; None is no limit.
        shared_memory: size and free bytes of /dev/shm.
    """

    cpu: str
    isas: tuple[str, ...]
    cpus: tuple[int, ...]
    cpu_quota: float | None
    memory: Memory
    nodes: tuple[NumaNode, ...]
    shared_memory: tuple[int, int]
    gpus: tuple[Gpu, ...]

    @property
    def cores(self) -> int:
        """How many threads can run at once."""
        most = len(self.cpus)
        return most if self.cpu_quota is None else min(most, quota_cores(self.cpu_quota))


def read_machine(root: Path = Path("/"), *, with_gpus: bool = True) -> Machine:
    """Looks at the machine. `root` stands in for `/` in tests."""
    cpuinfo = _text(root / "proc/cpuinfo")
    return Machine(
        cpu=_field(cpuinfo, "model name") or _field(cpuinfo, "Processor") or "unknown processor",
        isas=parse_isas(_field(cpuinfo, "flags") or ""),
        cpus=tuple(sorted(os.sched_getaffinity(0))),
        cpu_quota=cpu_quota(root),
        memory=_memory(root),
        nodes=_nodes(root),
        shared_memory=_shared_memory(root / "dev/shm"),
        gpus=read_gpus() if with_gpus else (),
    )


def parse_isas(flags: str) -> tuple[str, ...]:
    """The instruction sets whose flags are all in a `flags` line of /proc/cpuinfo."""
    present = set(flags.split())
    return tuple(name for name, needed in _ISA_FLAGS.items() if present.issuperset(needed))


def parse_cpu_list(text: str) -> tuple[int, ...]:
    """`0-2,8` as numbers."""
    cpus: list[int] = []
    for item in filter(None, text.strip().split(",")):
        first, _, last = item.partition("-")
        cpus.extend(range(int(first), int(last or first) + 1))
    return tuple(cpus)


def read_gpus(timeout_s: float = 10.0) -> tuple[Gpu, ...]:
    """The GPUs that CUDA shows this process; none if `nvidia-smi` is not there or too slow."""
    command = ["nvidia-smi", f"--query-gpu={_GPU_QUERY}", "--format=csv,noheader,nounits"]
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, check=True, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    return visible_gpus(parse_gpus(result.stdout), os.environ.get("CUDA_VISIBLE_DEVICES"))


def parse_gpus(output: str) -> tuple[Gpu, ...]:
    """GPUs from nvidia-smi's CSV lines; a GPU whose memory it does not tell is left out."""
    gpus = []
    for line in output.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) == 6 and fields[1].isdigit() and fields[2].isdigit():
            name, total, free, capability, driver, uuid = fields
            gpus.append(Gpu(name, int(total) << 20, int(free) << 20, capability, driver, uuid))
    return tuple(gpus)


def visible_gpus(gpus: tuple[Gpu, ...], wanted: str | None) -> tuple[Gpu, ...]:
    """Those that `CUDA_VISIBLE_DEVICES` names, in its order: numbers, or beginnings of UUIDs.

    As in CUDA, everything behind the first entry that names no GPU is ignored, and None is all of them.
    """
    if wanted is None:
        return gpus
    found: list[Gpu] = []
    for entry in wanted.split(","):
        match = _named_gpu(gpus, entry.strip())
        if match is None:
            break
        found.append(match)
    return tuple(found)


def _named_gpu(gpus: tuple[Gpu, ...], entry: str) -> Gpu | None:
    if entry.isdigit():
        return gpus[int(entry)] if int(entry) < len(gpus) else None
    matches = [gpu for gpu in gpus if entry and gpu.uuid.startswith(entry)]
    return matches[0] if len(matches) == 1 else None


# --- parts --------------------------------------------------------------------------------------------------


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _field(text: str, name: str) -> str | None:
    match = re.search(rf"^{re.escape(name)}\s*:\s*(.*)$", text, re.MULTILINE)
    return match[1].strip() if match else None


def _memory(root: Path) -> Memory:
    meminfo = _text(root / "proc/meminfo")
    total = _kilobytes(meminfo, "MemTotal")
    limit = min(total, memory_limit(root) or total)
    thp = re.search(r"\[(\w+)\]", _text(root / "sys/kernel/mm/transparent_hugepage/enabled"))
    return Memory(
        total=total,
        available=min(_kilobytes(meminfo, "MemAvailable"), limit),
        limit=limit,
        huge_pages_free=int(_field(meminfo, "HugePages_Free") or 0),
        huge_page_size=_kilobytes(meminfo, "Hugepagesize"),
        transparent_huge_pages=thp[1] if thp else "unknown",
    )


def _kilobytes(meminfo: str, name: str) -> int:
    text = _field(meminfo, name)
    return int(text.split()[0]) * 1024 if text else 0


_RECLAIMABLE = ("MemFree", "Active(file)", "Inactive(file)", "SReclaimable")


def _nodes(root: Path) -> tuple[NumaNode, ...]:
    folders = (root / "sys/devices/system/node").glob("node[0-9]*")
    permitted = _field(_text(root / "proc/self/status"), "Mems_allowed_list")
    nodes = (_node(folder, permitted and parse_cpu_list(permitted)) for folder in folders)
    return tuple(sorted(nodes, key=lambda node: node.number))


def _node(folder: Path, permitted: tuple[int, ...] | str | None) -> NumaNode:
    """The node of a folder in sysfs; `permitted`: numbers of those whose memory this process may use."""
    number = int(folder.name.removeprefix("node"))
    cpus = parse_cpu_list(_text(folder / "cpulist"))
    if permitted and number not in permitted:
        return NumaNode(number, cpus, 0, 0)
    meminfo = re.sub(r"^Node \d+ ", "", _text(folder / "meminfo"), flags=re.MULTILINE)
    free = sum(_kilobytes(meminfo, name) for name in _RECLAIMABLE)
    return NumaNode(number, cpus, _kilobytes(meminfo, "MemTotal"), free if "MemFree" in meminfo else None)


def _shared_memory(path: Path) -> tuple[int, int]:
    try:
        stat = os.statvfs(path)
    except OSError:
        return 0, 0
    return stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize
