"""Kept weights: found again by the next start, made anew when they are not right, refused from others."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from expert_store import Counter, assert_right, backwards, let_go, make_task, obtained
from trimaran.errors import ConfigError
from trimaran_experts.store import rooms
from trimaran_experts.store.catalog import list_segments
from trimaran_experts.weights import obtain


def test_a_second_start_packs_nothing_and_reads_little(q8: Path, directory: Path) -> None:
    count = Counter()
    first = obtained(make_task(q8, backwards(on_pack=count), store="tmpfs", store_dir=str(directory)))
    packed = count.packed
    assert packed == 2 * 3 * 16
    task = make_task(q8, backwards(on_pack=count), store="tmpfs", store_dir=str(directory))
    second = obtained(task)
    assert count.packed == packed
    assert_right(second, task)
    assert first.segment is not None
    assert second.segment is not None
    assert first.segment.path.samefile(second.segment.path)
    assert not second.layers[0].gate.data.flags.writeable
    (entry,) = list_segments(directory)
    assert entry.state == "in use"
    assert entry.manifest is not None
    assert entry.manifest.identity == task.identity
    assert entry.path.stat().st_mode & 0o777 == 0o600


def damage_data(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(2 << 20)
        file.write(b"\x5a" * 64)


def damage_manifest(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(4096 + 40)
        file.write(b"\0")


def forget_the_flag(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(12)
        file.write(b"\0\0\0\0")


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def other_version(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(8)
        file.write(b"\x63")


def noise(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(5000))


def open_to_others(path: Path) -> None:
    path.chmod(0o644)


def huge_manifest(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(40)
        file.write(b"\xff\xff\xff\xff")


@pytest.mark.parametrize(
    "harm",
    [
        damage_data,
        damage_manifest,
        forget_the_flag,
        truncate,
        empty,
        other_version,
        noise,
        open_to_others,
        huge_manifest,
    ],
)
def test_what_is_not_whole_is_made_anew(q8: Path, directory: Path, harm) -> None:
    count = Counter()
    task = make_task(q8, backwards(on_pack=count), store="tmpfs", store_dir=str(directory))
    path = let_go(obtained(task))
    harm(path)
    packed = count.packed
    weights = obtained(task)
    assert count.packed == 2 * packed
    assert_right(weights, task)
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_changed_file_or_packing_is_packed_anew(q8: Path, directory: Path) -> None:
    count = Counter()
    options = {"store": "tmpfs", "store_dir": str(directory)}
    let_go(obtained(make_task(q8, backwards(on_pack=count), **options)))
    os.utime(q8, ns=(1, 1))
    let_go(obtained(make_task(q8, backwards(on_pack=count), **options)))
    assert count.packed == 2 * 96
    assert len(list_segments(directory)) == 1
    let_go(obtained(make_task(q8, backwards(2, on_pack=count), **options)))
    assert count.packed == 3 * 96
    assert len(list_segments(directory)) == 2


def test_stale_weights_in_use_stay_with_their_user(q8: Path, directory: Path) -> None:
    options = {"store": "tmpfs", "store_dir": str(directory)}
    old_task = make_task(q8, backwards(), **options)
    old = obtained(old_task)
    os.utime(q8, ns=(1, 1))
    new_task = make_task(q8, backwards(), **options)
    new = obtained(new_task)
    assert_right(old, old_task)
    assert_right(new, new_task)
    assert len(list_segments(directory)) == 1


def test_another_users_or_linked_file_is_refused(q8: Path, directory: Path, tmp_path: Path) -> None:
    task = make_task(q8, backwards(), store="tmpfs", store_dir=str(directory))
    path = directory / f"{task.identity.key}.experts"
    (tmp_path / "elsewhere").write_text("precious")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=r"experts\.store_dir"):
        obtain(task)
    assert (tmp_path / "elsewhere").read_text() == "precious"
    path.unlink()
    path.mkdir()
    with pytest.raises(ConfigError, match=r"experts\.store_dir"):
        obtain(task)
    path.rmdir()
    if os.getuid() == 0:
        path.touch(0o600)
        os.chown(path, 12345, 12345)
        with pytest.raises(ConfigError, match="not a file of this user"):
            obtain(task)


def test_a_directory_open_to_others_is_refused(q8: Path, directory: Path) -> None:
    directory.chmod(0o755)
    with pytest.raises(ConfigError, match="others may enter"):
        obtain(make_task(q8, backwards(), store="tmpfs", store_dir=str(directory)))


def test_a_disk_is_no_tmpfs(q8: Path, tmp_path: Path) -> None:
    if rooms.file_system(tmp_path) == "tmpfs":
        pytest.skip("the temporary directory is on a tmpfs")
    (tmp_path / "store").mkdir(mode=0o700)
    with pytest.raises(ConfigError, match="neither a tmpfs"):
        obtain(make_task(q8, backwards(), store="tmpfs", store_dir=str(tmp_path / "store")))
