from __future__ import annotations

from pathlib import Path

import pytest
from trimaran.machine import (
    Gpu,
    parse_cpu_list,
    parse_gpus,
    parse_isas,
    read_gpus,
    read_machine,
    visible_gpus,
)

MEMINFO = "MemTotal: 1024000 kB\nMemAvailable: 512000 kB\nHugePages_Free: 3\nHugepagesize: 2048 kB\n"


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_a_two_socket_machine(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/cpuinfo": "model name\t: Xeon\nflags\t\t: avx2 fma f16c avx512f avx512_vnni\n",
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": "0::/a/b\n",
            "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
            "sys/fs/cgroup/a/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/a/memory.max": "300000000\n",
            "sys/fs/cgroup/a/b/memory.max": "max\n",
            "sys/devices/system/node/node1/cpulist": "4-7\n",
            "sys/devices/system/node/node1/meminfo": "Node 1 MemTotal: 512000 kB\n",
            "sys/devices/system/node/node0/cpulist": "0-3\n",
            "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
        },
    )
    machine = read_machine(root, with_gpus=False)
    assert machine.cpu == "Xeon"
    assert machine.isas == ("avx2", "avx512_vnni")
    assert machine.cpu_quota == 1.5
    assert machine.cores == min(2, len(machine.cpus)), "a part of a core counts as one"
    assert machine.memory.total == 1024000 * 1024
    assert machine.memory.limit == machine.memory.available == 300000000
    assert machine.memory.huge_pages_free == 3
    assert machine.memory.transparent_huge_pages == "madvise"
    assert [(node.number, node.cpus) for node in machine.nodes] == [(0, (0, 1, 2, 3)), (1, (4, 5, 6, 7))]
    assert machine.nodes[1].memory == 512000 * 1024


def test_version_one_cgroups(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": "5:cpu,cpuacct:/box\n4:memory:/box\n",
            "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us": "300000\n",
            "sys/fs/cgroup/cpu/box/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/box/memory.limit_in_bytes": "9000\n",
        },
    )
    machine = read_machine(root, with_gpus=False)
    assert machine.cpu_quota == 3
    assert machine.memory.limit == 9000


def test_an_empty_tree_is_survived(tmp_path: Path) -> None:
    machine = read_machine(tmp_path, with_gpus=False)
    assert machine.isas == ()
    assert machine.memory.total == 0
    assert machine.shared_memory == (0, 0)
    assert machine.cores >= 1


def test_this_machine_has_memory_and_cores() -> None:
    machine = read_machine()
    assert machine.memory.limit > 1 << 28
    assert 1 <= machine.cores <= len(machine.cpus)


@pytest.mark.parametrize(("text", "cpus"), [("0-2,8\n", (0, 1, 2, 8)), ("5", (5,)), ("", ()), ("\n", ())])
def test_cpu_lists(text: str, cpus: tuple[int, ...]) -> None:
    assert parse_cpu_list(text) == cpus


def test_isas_need_all_their_flags() -> None:
    assert parse_isas("avx2 fma") == ()
    assert parse_isas("amx_tile amx_int8 amx_bf16 avx2 fma f16c") == ("avx2", "amx")


def test_gpus_from_nvidia_smi() -> None:
    output = "NVIDIA GeForce RTX 4090, 24564, 24000, 8.9, 570.1, GPU-1a\nOdd, [N/A], [N/A], 1.0, 1, GPU-2b\n"
    (gpu,) = parse_gpus(output)
    assert gpu.memory == 24564 << 20
    assert (gpu.name, gpu.capability) == ("NVIDIA GeForce RTX 4090", "8.9")


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (None, ["GPU-aa1", "GPU-ab2", "GPU-c3"]),
        ("", []),
        ("-1", []),
        ("2,0", ["GPU-c3", "GPU-aa1"]),
        ("1, 7, 0", ["GPU-ab2"]),
        ("GPU-ab", ["GPU-ab2"]),
        ("GPU-a", []),  # two begin like that
    ],
)
def test_visible_gpus_are_cudas(wanted: str | None, expected: list[str]) -> None:
    gpus = tuple(Gpu("card", 1, 1, "8.9", "570", uuid) for uuid in ("GPU-aa1", "GPU-ab2", "GPU-c3"))
    assert [gpu.uuid for gpu in visible_gpus(gpus, wanted)] == expected


def test_a_hanging_nvidia_smi_is_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "nvidia-smi"
    fake.write_text("#!/bin/sh\nexec sleep 20\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert read_gpus(timeout_s=0.2) == ()
