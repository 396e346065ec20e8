from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from trimaran.cli.leftovers import LOCK_NAME, RunDirLock, remove_dead_run_dirs
from trimaran.errors import PeerError


def test_only_dead_servers_directories_go(tmp_path: Path) -> None:
    for name in ("trimaran-live", "trimaran-dead", "trimaran-nolock", "other-dead"):
        (tmp_path / name).mkdir()
    (tmp_path / "trimaran-dead" / LOCK_NAME).touch()
    (tmp_path / "trimaran-dead" / "attn.sock").touch()
    (tmp_path / "other-dead" / LOCK_NAME).touch()
    (tmp_path / "trimaran-link").symlink_to(tmp_path / "other-dead")
    with RunDirLock(tmp_path / "trimaran-live"):
        assert remove_dead_run_dirs(tmp_path) == [tmp_path / "trimaran-dead"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "other-dead",
        "trimaran-link",
        "trimaran-live",
        "trimaran-nolock",
    ]


def test_one_server_a_directory(tmp_path: Path) -> None:
    with RunDirLock(tmp_path), pytest.raises(PeerError, match="another server runs"):
        RunDirLock(tmp_path)
    RunDirLock(tmp_path).close()
    assert list(tmp_path.iterdir()) == []


def test_a_killed_holder_lets_go(tmp_path: Path) -> None:
    directory = tmp_path / "trimaran-x"
    directory.mkdir()
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom trimaran.cli.leftovers import RunDirLock\n"
        "lock = RunDirLock(Path(sys.argv[1]))\nprint('held', flush=True)\ntime.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, directory], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    assert remove_dead_run_dirs(tmp_path) == []
    holder.kill()
    holder.communicate()
    assert remove_dead_run_dirs(tmp_path) == [directory]
