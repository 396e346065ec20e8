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
    for feature in ("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx_vnni"):
        assert (feature in cpu_features()) == (feature in flags), feature


NEEDS = {
    "amx": {
        *("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16"),
        *("amx_tile", "amx_bf16"),
    },
    "avx512_vnni": {"avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_vnni"},
    "avx512": {"avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl"},
    "avx_vnni": {"avx2", "fma", "f16c", "avx_vnni"},
    "avx2": {"avx2", "fma", "f16c"},
    "generic": set(),
}


def test_the_best_that_runs_is_chosen():
    refused = explain_isa().startswith("amx: refused by the operating system")
    runs = [isa for isa in built_isas() if NEEDS[isa] <= set(cpu_features())][refused:]
    assert detect_isa() == runs[0]
    assert explain_isa().endswith(f"{runs[0]}: chosen")


def test_what_cannot_run_is_refused_with_the_missing_features():
    reasons = dict(part.split(": ", 1) for part in explain_isa().split("; "))
    for isa in built_isas():
        if missing := NEEDS[isa] - set(cpu_features()):
            assert reasons[isa].startswith("refused, this CPU lacks")
            assert all(feature in reasons[isa].split() for feature in missing)


@pytest.mark.parametrize("cap", ["amx", "avx512_vnni", "avx512", "avx_vnni", "avx2"])
def test_a_cap_allows_itself_and_what_is_below(cap):
    order = ["amx", "avx512_vnni", "avx512", "avx_vnni", "avx2", "generic"]
    assert order.index(detect_isa(cap)) == max(order.index(cap), order.index(detect_isa()))


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
