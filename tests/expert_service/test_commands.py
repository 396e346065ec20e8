"""`trimaran experts --list` and `--purge`, as a person runs them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Path]:
    directory = Path("/dev/shm") / f"trimaran-test-{os.getpid()}-{tmp_path.name}"
    directory.mkdir(mode=0o700)
    yield directory
    for entry in directory.iterdir():
        entry.unlink()
    directory.rmdir()


def trimaran(store: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs `trimaran experts …` with `store` as the only place where segments are."""
    command = [sys.executable, "-c", "from trimaran.cli.main import main; main()", "experts", *arguments]
    environ = {**os.environ, "TRIMARAN_EXPERTS__STORE_DIR": str(store)}
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)


def test_segments_are_kept_listed_and_removed(store: Path, start_experts) -> None:
    options = {"experts.store": "tmpfs", "experts.store_dir": str(store)}
    service = start_experts(**options)
    assert Path(service.wait_for("weights stay for the next start")["path"]).parent == store
    service.wait_for("ready")
    listed = trimaran(store, "--list").stdout
    assert "in use" in listed
    assert "all experts" in listed
    assert "kept" in trimaran(store, "--purge").stdout
    assert service.stop() == 0
    (segment,) = store.iterdir()
    again = start_experts(**options)
    again.wait_for("ready")
    assert again.records("packing experts") == []
    assert again.wait_for("experts are attached")["seconds"] < 2
    assert again.stop() == 0
    assert "ready " in trimaran(store, "--list").stdout
    assert "removed" in trimaran(store, "--purge").stdout
    assert not segment.exists()


def test_both_at_once_are_refused(store: Path) -> None:
    result = trimaran(store, "--list", "--purge")
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1


def test_a_small_model_leaves_nothing(start_experts) -> None:
    service = start_experts()
    assert service.wait_for("store of the experts")["store"] == "private"
    service.wait_for("ready")
    assert service.records("weights stay for the next start") == []
