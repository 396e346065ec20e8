"""Weights in every kind of store: the right bytes, kept, found again, made anew when they are not right."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trimaran_experts.store.segment as segment_module
from expert_store import backwards, make_task
from trimaran.errors import ConfigError, PeerError, PlanError
from trimaran.synth import write_random_model
from trimaran_experts import weights as weights_module
from trimaran_experts.progress import Report
from trimaran_experts.store import rooms
from trimaran_experts.store.catalog import list_segments, purge, remove_dead
from trimaran_experts.weights import Task, Weights, obtain

SHARED = {"tmpfs", "file"}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of types that this packing leaves as they are."""
    path = tmp_path_factory.mktemp("store-model") / "model.gguf"
    return write_random_model(path, "v3", mix="Q4_K_M", tokenizer=False)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """On a tmpfs, private."""
    directory = Path("/dev/shm") / f"trimaran-test-{os.getpid()}-{tmp_path.name}"
    directory.mkdir(mode=0o700)
    yield directory
    for entry in directory.iterdir():
        entry.unlink()
    directory.rmdir()


@pytest.fixture
def q8(model, tmp_path: Path) -> Path:
    """A copy, for some tests touch it. All its experts are Q8_0."""
    return Path(shutil.copyfile(model.path, tmp_path / "q8.gguf"))


class Counter:
    """Counts what was packed."""

    def __init__(self) -> None:
        self.packed = 0

    def __call__(self) -> None:
        self.packed += 1


def obtained(task: Task) -> Weights:
    weights = obtain(task)
    assert weights is not None
    return weights


def assert_right(weights: Weights, task: Task) -> None:
    """Every expert's bytes are those of the file, through the packing."""
    for stored_layer, layer in zip(weights.layers, task.layers, strict=True):
        assert stored_layer.layer == layer.layer
        stored = (stored_layer.gate, stored_layer.up, stored_layer.down)
        for one, matrix in zip(stored, layer.matrices, strict=True):
            assert one.type == matrix.type
            experts = one.data.reshape(matrix.n_experts, -1)
            for index in range(matrix.n_experts):
                want = matrix.expert(index)
                got = experts[index][16:][::-1] if one.packed else experts[index]
                np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("store", ["tmpfs", "file", "private", "off", "auto"])
@pytest.mark.parametrize("packed", [True, False])
def test_every_store_holds_the_files_weights(
    path: Path, q8: Path, directory: Path, store: str, packed: bool
) -> None:
    where = {"store_dir": str(directory)} if store in SHARED else {}
    task = make_task(q8 if packed else path, backwards(), store=store, **where)
    weights = obtained(task)
    assert_right(weights, task)
    assert any(layer.gate.packed for layer in weights.layers) == (packed and store != "off")
    assert len(list(directory.iterdir())) == (store in SHARED)


@pytest.mark.parametrize("store", ["tmpfs", "private", "file"])
@pytest.mark.parametrize("columns", ["0-127", "128-255", "64-95"])
def test_a_slice_of_columns_is_cut_out_of_every_expert(
    q8: Path, directory: Path, store: str, columns: str
) -> None:
    where = {"store_dir": str(directory)} if store in SHARED else {}
    task = make_task(q8, backwards(), store=store, columns=columns, experts="3-8", **where)
    first, end = task.identity.columns
    assert task.layers[0].gate.shape == (end - first, 256)
    assert task.layers[0].down.shape == (256, end - first)
    assert_right(obtained(task), task)


def test_columns_are_cut_on_blocks_only(path: Path) -> None:
    with pytest.raises(ConfigError, match=r"experts.columns is 0-127, but blk.1.ffn_down_exps.*of 256"):
        make_task(path, backwards(), columns="0-127")


def test_a_slice_cannot_be_computed_from_the_file(q8: Path) -> None:
    with pytest.raises(ConfigError, match=r"store is off"):
        obtain(make_task(q8, backwards(), columns="0-127", store="off"))


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


def let_go(weights: Weights) -> Path:
    """Where the segment is, once the caller has no other reference to it."""
    assert weights.segment is not None
    return weights.segment.path


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


def test_told_to_stop_it_leaves_nothing(q8: Path, directory: Path) -> None:
    count = Counter()
    task = make_task(q8, backwards(on_pack=count), store="tmpfs", store_dir=str(directory))
    assert obtain(replace(task, stopped=lambda: count.packed > 0)) is None
    assert 0 < count.packed < 96
    assert list(directory.iterdir()) == []
    assert obtain(replace(task, stopped=lambda: True)) is None
    private = make_task(q8, backwards(on_pack=count), store="private")
    before = count.packed
    assert obtain(replace(private, stopped=lambda: count.packed > before)) is None


def test_progress_goes_to_one_with_speed_and_time_left(q8: Path) -> None:
    reports: list[Report] = []
    obtained(replace(make_task(q8, backwards(), store="private"), on_progress=reports.append))
    fractions = [report.fraction for report in reports]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert len(fractions) == 6
    assert all(report.bytes_per_s > 0 for report in reports)
    assert reports[0].eta_s > 0
    assert reports[-1].eta_s == 0


def test_no_room_is_said_with_a_remedy(q8: Path, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"store": "tmpfs", "store_dir": str(directory)}
    with pytest.raises(PlanError, match=r"of RAM are free.*--purge"):
        obtain(make_task(q8, backwards(), ram=1000, **options))
    with pytest.raises(PlanError, match=r"of RAM are free"):
        obtain(make_task(q8, backwards(), ram=1000, store="private"))
    monkeypatch.setattr(rooms, "free_bytes", lambda _directory: 1000)
    with pytest.raises(PlanError, match=r"has room for 0.98 KiB.*--list.*experts.store=private"):
        obtain(make_task(q8, backwards(), **options))
    assert list(directory.iterdir()) == []


def test_a_tmpfs_that_fills_up_meanwhile_is_one_line(
    q8: Path, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_rest: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights_module.memory, "populate_for_writing", full)
    with pytest.raises(PlanError, match="ran out: No space left"):
        obtain(make_task(q8, backwards(), store="tmpfs", store_dir=str(directory)))
    assert list(directory.iterdir()) == []


def test_auto_keeps_large_models_and_falls_back(
    q8: Path, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rooms, "KEEP_FROM", 0)
    options = {"store": "auto", "store_dir": str(directory)}
    kept = obtained(make_task(q8, backwards(), **options))
    assert kept.segment is not None
    del kept
    assert obtained(make_task(q8, backwards(), **options)).segment is not None
    os.utime(q8, ns=(1, 1))
    monkeypatch.setattr(rooms, "free_bytes", lambda _directory: 1000)
    task = make_task(q8, backwards(), **options)  # its name is there, but stale, and there is no room for it
    weights = obtained(task)
    assert weights.segment is None
    assert_right(weights, task)


def test_the_files_pages_leave_the_page_cache(q8: Path) -> None:
    task = make_task(q8, backwards(), store="private")
    matrix = task.layers[0].gate
    fd = os.open(q8, os.O_RDONLY)
    try:
        os.fsync(fd)
        middle = matrix.offset + matrix.raw.size // 2
        os.pread(fd, matrix.raw.size, matrix.offset)
        try:
            assert os.preadv(fd, [bytearray(4096)], middle, os.RWF_NOWAIT) == 4096
        except OSError:
            pytest.skip("this file system does not tell what is cached")
        obtained(task)
        with pytest.raises(BlockingIOError):
            os.preadv(fd, [bytearray(4096)], middle, os.RWF_NOWAIT)
    finally:
        os.close(fd)


# --- several services ---------------------------------------------------------------------------------------

BUILDER = """
import sys, time
from pathlib import Path
from expert_store import backwards, make_task
from trimaran_experts.weights import obtain
def slowly():
    print("packing", flush=True)
    time.sleep(float(sys.argv[3]))
task = make_task(Path(sys.argv[1]), backwards(on_pack=slowly), store="tmpfs", store_dir=sys.argv[2])
weights = obtain(task)
print("ready", flush=True)
sys.stdin.read()
"""


def start_builder(model: Path, directory: Path, pause_s: float) -> subprocess.Popen[str]:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    builder = subprocess.Popen(
        [sys.executable, "-c", BUILDER, str(model), str(directory), str(pause_s)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environ,
    )
    assert builder.stdout is not None
    assert builder.stdout.readline() == "packing\n"
    return builder


def finish(builder: subprocess.Popen[str]) -> None:
    assert builder.stdin is not None
    assert builder.stdout is not None
    builder.kill()
    builder.wait()
    builder.stdin.close()
    builder.stdout.close()


def test_a_second_service_waits_for_the_first_and_attaches(q8: Path, directory: Path) -> None:
    builder = start_builder(q8, directory, 0.01)
    count = Counter()
    reports: list[Report] = []
    task = make_task(q8, backwards(on_pack=count), store="tmpfs", store_dir=str(directory))
    try:
        weights = obtained(replace(task, on_progress=reports.append))
        assert count.packed == 0
        assert_right(weights, task)
        removed, kept = purge(directory)
        assert (len(removed), len(kept)) == (0, 1)
    finally:
        finish(builder)
    del weights
    removed, kept = purge(directory)
    assert (len(removed), len(kept)) == (1, 0)
    assert list(directory.iterdir()) == []


def test_a_killed_builder_leaves_the_work_to_the_next(q8: Path, directory: Path) -> None:
    builder = start_builder(q8, directory, 60)
    (entry,) = list_segments(directory)
    assert (entry.state, entry.manifest) == ("in use", None)
    assert remove_dead(directory) == []
    finish(builder)
    (entry,) = list_segments(directory)
    assert entry.state == "half-written"
    assert remove_dead(directory) == [entry.path]
    builder = start_builder(q8, directory, 60)
    finish(builder)
    task = make_task(q8, backwards(), store="tmpfs", store_dir=str(directory))
    assert_right(obtained(task), task)


def test_a_builder_that_is_stuck_is_not_waited_for(
    q8: Path, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segment_module, "STALL_S", 0.3)
    builder = start_builder(q8, directory, 60)
    builder.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(PeerError, match=r"wrote nothing for 0 s.*store=private"):
            obtain(make_task(q8, backwards(), store="tmpfs", store_dir=str(directory)))
    finally:
        finish(builder)


def test_two_at_once_pack_once(q8: Path, directory: Path) -> None:
    count = Counter()
    tasks = [
        make_task(q8, backwards(on_pack=count), store="tmpfs", store_dir=str(directory)) for _ in range(4)
    ]
    found: list[Weights] = []
    threads = [threading.Thread(target=lambda task=task: found.append(obtained(task))) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert count.packed == 96
    for weights in found:
        assert_right(weights, tasks[0])


def test_a_file_that_was_removed_while_it_was_opened_is_made_again(
    q8: Path, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = make_task(q8, backwards(), store="tmpfs", store_dir=str(directory))
    lock = segment_module.SegmentFile.try_lock
    removed: list[Path] = []

    def lock_after_a_purge(file, kind: int) -> bool:
        if kind == fcntl.LOCK_EX and not removed:
            removed.append(file.path)
            file.path.unlink()
        return lock(file, kind)

    monkeypatch.setattr(segment_module.SegmentFile, "try_lock", lock_after_a_purge)
    weights = obtained(task)
    assert_right(weights, task)
    assert removed[0].exists()
