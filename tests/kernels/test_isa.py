from __future__ import annotations

from pathlib import Path

import pytest
from trimaran.errors import KernelError
from trimaran_kernels import built_isas, cpu_features, detect_isa, explain_isa


@pytest.fixture(autouse=True)
def _no_environment_cap(monkeypatch):
    monkeypatch.delenv("TRIMARAN_ISA", raising=False)


def test_features_are_what_the_kernel_reports():
    flags = Path("/proc/cpuinfo").read_text().partition("flags")[2].splitlines()[0].split()
    # Not the AMX ones: older kernels do not list them.
    for feature in ("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_vnni"):
        assert (feature in cpu_features()) == (feature in flags), feature


def test_the_best_that_runs_is_chosen():
    expected = "avx2" if {"avx2", "fma", "f16c"} <= set(cpu_features()) else "generic"
    assert detect_isa() == expected
    assert explain_isa().endswith(f"{expected}: chosen")


def test_a_cap_above_what_is_built_changes_nothing():
    for cap in ("amx", "avx512_vnni", "avx512"):
        assert detect_isa(cap) == detect_isa()


def test_cap_of_the_caller():
    assert detect_isa("generic") == "generic"
    for refused in built_isas()[:-1]:
        assert f"{refused}: refused" in explain_isa("generic")


def test_cap_of_the_environment(monkeypatch):
    monkeypatch.setenv("TRIMARAN_ISA", "generic")
    assert detect_isa() == "generic"
    assert detect_isa("avx2") == "generic"
    assert built_isas()[0] == "generic" or "TRIMARAN_ISA=generic" in explain_isa()


def test_unknown_names_are_refused(monkeypatch):
    with pytest.raises(KernelError, match='isa "mmx" is no instruction set: use auto, amx'):
        detect_isa("mmx")
    monkeypatch.setenv("TRIMARAN_ISA", "mmx")
    with pytest.raises(KernelError, match='TRIMARAN_ISA "mmx"'):
        detect_isa()
