from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
from trimaran import checkup
from trimaran.checkup import Finding, examine
from trimaran.machine import read_machine

Examine = Callable[..., dict[str, Finding]]


@pytest.fixture
def examine_without(monkeypatch: pytest.MonkeyPatch) -> Examine:
    """The findings, by subject, of a machine that lacks some modules; torch itself is not started."""
    real = importlib.util.find_spec

    def run(*absent: str, torch: str = '{"version": "2.0", "cuda": null, "gpus": 0}') -> dict[str, Finding]:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in absent else real(name))
        monkeypatch.setattr(checkup, "_TORCH_PROBE", f"print('''{torch}''')" if torch else "raise OSError(1)")
        return {finding.subject: finding for finding in examine(read_machine())}

    return run


def test_a_whole_installation_runs_everything(examine_without: Any) -> None:
    assert examine_without()["services"] == Finding("services", "ok", "can run all: gateway, experts, attn")


@pytest.mark.parametrize(
    ("absent", "services"),
    [
        (["torch", "llguidance", "trimaran_kernels"], "can run gateway"),
        (["torch"], "can run gateway and experts"),
        (["fastapi", "torch"], "can run experts"),
        (["fastapi"], "can run experts and attn"),
    ],
)
def test_one_service_alone_is_an_installation_too(
    examine_without: Any, absent: list[str], services: str
) -> None:
    found = examine_without(*absent)
    assert (found["services"].verdict, found["services"].detail) == ("note", services)
    assert not [finding for finding in found.values() if finding.verdict == "missing"]
    assert all(finding.remedy for finding in found.values() if finding.is_absent)


def test_where_nothing_can_run_something_is_missing(examine_without: Any) -> None:
    found = examine_without("fastapi", "torch", "trimaran_kernels")
    assert found["services"].verdict == "missing"
    assert "trimaran[all]" in found["services"].remedy


def test_a_broken_torch_is_no_absent_one(examine_without: Any) -> None:
    found = examine_without(torch="")
    assert found["torch"].verdict == "missing"
    assert found["services"].detail == "can run gateway and experts"
