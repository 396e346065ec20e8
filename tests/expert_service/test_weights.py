"""Weights in every kind of store: the right bytes, with room or without, and progress meanwhile."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from expert_store import Counter, assert_right, backwards, make_task, obtained
from trimaran.errors import ConfigError, PlanError
from trimaran.synth import write_random_model
from trimaran_experts import weights as weights_module
from trimaran_experts.progress import Report
from trimaran_experts.store import rooms
from trimaran_experts.weights import obtain

SHARED = {"tmpfs", "file"}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of types that this packing leaves as they are."""
    path = tmp_path_factory.mktemp("store-model") / "model.gguf"
    return write_random_model(path, "v3", mix="Q4_K_M", tokenizer=False)


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
