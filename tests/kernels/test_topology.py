from __future__ import annotations

import os

import pytest
from trimaran.cgroup import cpu_quota
from trimaran_kernels.topology import usable_cpus


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Builds a machine of two-thread cores under a folder: CPU i and i + n_cores share core i."""

    def build(n_cores: int, cgroup: str = "0::/\n", **files: str):
        for cpu in range(2 * n_cores):
            folder = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/topology"
            folder.mkdir(parents=True)
            (folder / "physical_package_id").write_text("0\n")
            (folder / "core_id").write_text(f"{cpu % n_cores}\n")
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text(cgroup)
        for path, text in files.items():
            file = tmp_path / "sys/fs/cgroup" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(2 * n_cores)))
        return tmp_path

    return build


def test_one_cpu_per_core(machine):
    assert usable_cpus(root=machine(4)) == [0, 1, 2, 3]


def test_siblings_only_when_asked_for(machine):
    root = machine(4)
    assert usable_cpus(6, root=root) == [0, 1, 2, 3, 4, 5]
    assert usable_cpus(2, root=root) == [0, 1]
    assert usable_cpus(100, root=root) == list(range(8))
    assert usable_cpus(0, root=root) == [0]


def test_affinity_is_kept(machine, monkeypatch):
    root = machine(4)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {2, 5, 6})
    assert usable_cpus(root=root) == [2, 5]  # 6 is on core 2


def test_only_some_cpus(machine):
    root = machine(4)
    assert usable_cpus(among=(5, 2, 9), root=root) == [2, 5]
    assert usable_cpus(among=(1, 5, 2), root=root) == [1, 2]
    assert usable_cpus(among=(9,), root=root) == []


def test_quota_of_cgroup_v2_rounds_up(machine):
    root = machine(4, **{"cpu.max": "250000 100000\n"})
    assert cpu_quota(root) == 2.5
    assert usable_cpus(root=root) == [0, 1, 2]


def test_the_tightest_ancestor_counts(machine):
    files = {"a/cpu.max": "150000 100000\n", "a/b/cpu.max": "max 100000\n"}
    assert cpu_quota(machine(4, "0::/a/b\n", **files)) == 1.5


def test_quota_of_cgroup_v1(machine):
    files = {"cpu,cpuacct/job/cpu.cfs_quota_us": "50000\n", "cpu,cpuacct/job/cpu.cfs_period_us": "100000\n"}
    root = machine(4, "4:cpu,cpuacct:/job\n3:memory:/job\n", **files)
    assert cpu_quota(root) == 0.5
    assert usable_cpus(root=root) == [0]


def test_no_quota(machine):
    unlimited = {"cpu,cpuacct/cpu.cfs_quota_us": "-1\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"}
    assert cpu_quota(machine(2, "4:cpu,cpuacct:/\n", **unlimited)) is None


def test_without_topology_files_every_cpu_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 7})
    assert usable_cpus(root=tmp_path) == [0, 1, 7]


def test_this_machine():
    cpus = usable_cpus()
    assert cpus
    assert set(cpus) <= os.sched_getaffinity(0)
