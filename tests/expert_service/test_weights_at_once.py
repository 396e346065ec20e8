"""Several services that want the same weights at the same time."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import trimaran_experts.store.segment as segment_module
from expert_store import Counter, assert_right, backwards, make_task, obtained
from trimaran.errors import PeerError
from trimaran_experts.progress import Report
from trimaran_experts.store.catalog import list_segments, purge, remove_dead
from trimaran_experts.weights import Weights, obtain

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
