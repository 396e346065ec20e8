"""The run directory is private, named predictably and removed by who made it."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from trimaran.errors import ConfigError
from trimaran.run_dir import attn_endpoint, default_run_dir, experts_endpoint, open_run_dir


def test_a_fresh_one_is_private_and_goes_away() -> None:
    with open_run_dir() as run_dir:
        assert stat.S_IMODE(run_dir.path.stat().st_mode) == 0o700
        (run_dir.path / "attn.sock").touch()
    assert not run_dir.path.exists()


def test_one_that_was_there_stays(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    with open_run_dir(tmp_path):
        pass
    assert tmp_path.is_dir()


def test_a_named_one_is_created_and_removed(tmp_path: Path) -> None:
    with open_run_dir(tmp_path / "a" / "run"):
        assert stat.S_IMODE((tmp_path / "a" / "run").stat().st_mode) == 0o700
    assert not (tmp_path / "a" / "run").exists()


def test_a_named_one_stays_while_another_process_uses_it(tmp_path: Path) -> None:
    with open_run_dir(tmp_path / "run"):
        (tmp_path / "run" / "attn.sock").touch()
    assert (tmp_path / "run" / "attn.sock").exists()


def test_one_that_others_may_enter_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with pytest.raises(ConfigError, match="others may enter it"):
        open_run_dir(tmp_path)


def test_a_symbolic_link_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(ConfigError, match="symbolic links"):
        open_run_dir(tmp_path / "link")


def test_a_path_too_long_for_a_socket_is_refused_and_not_left_behind(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 100)
    with pytest.raises(ConfigError, match="too long"):
        open_run_dir(path)
    assert not path.exists()


def test_endpoints() -> None:
    assert attn_endpoint("/run/t") == "ipc:///run/t/attn.sock"
    assert experts_endpoint("/run/t") == "ipc:///run/t/experts-0.sock"
    assert experts_endpoint("/run/t", "node-1") == "ipc:///run/t/experts-node-1.sock"
    assert default_run_dir() == default_run_dir()


@pytest.mark.parametrize("shard", ["", "../x", "a/b", "x" * 21])
def test_bad_shard_names_are_refused(shard: str) -> None:
    with pytest.raises(ConfigError, match="shard name"):
        experts_endpoint("/run/t", shard)
