"""What CI runs, with a `make` that only notes what it is asked for."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FIRST = ["tests/a/test_b.py::test_c[x y]", "tests/a/test_b.py::test_d"]
MAKE = """#!/bin/sh
echo "made $*"
case "$*" in
  lint) exit {lint} ;;
  test) exit {first} ;;
  *) exit {second} ;;
esac
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci" / "run")
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").symlink_to(sys.executable)
    cache = tmp_path / ".pytest_cache" / "v" / "cache"
    cache.mkdir(parents=True)
    (cache / "lastfailed").write_text(json.dumps(dict.fromkeys(FIRST, True)))
    return tmp_path


def ci(folder: Path, **codes: int) -> tuple[int, str]:
    make = folder / "make"
    make.write_text(MAKE.format(**{"lint": 0, "first": 0, "second": 0, **codes}))
    make.chmod(0o755)
    path = f"{folder}:{os.environ['PATH']}"
    done = subprocess.run(
        [folder / ".ci" / "run"],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def test_what_passed_only_at_the_second_attempt_is_named_last(folder: Path) -> None:
    code, text = ci(folder, first=2)
    assert code == 0
    assert text.endswith("\n=== WARNING: 2 passed only at the second attempt:\n" + "\n".join(FIRST) + "\n")
    assert "made test ARGS=--last-failed" in text


def test_what_fails_twice_fails(folder: Path) -> None:
    code, text = ci(folder, first=2, second=2)
    assert code == 2
    assert "WARNING" not in text
    assert all(name in text for name in FIRST)


def test_there_is_no_second_chance_without_failed_tests(folder: Path) -> None:
    assert ci(folder) == (0, "made lint\nmade test\n")
    assert ci(folder, lint=1) == (1, "made lint\n")
    (folder / ".pytest_cache" / "v" / "cache" / "lastfailed").unlink()
    assert ci(folder, first=2) == (1, "made lint\nmade test\n")
