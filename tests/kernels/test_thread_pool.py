from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from trimaran.errors import KernelError
from trimaran_kernels import ThreadPool, linear, read_memory, usable_cpus


def run_something(pool: ThreadPool) -> None:
    out = np.empty((1, 64), np.float32)
    linear(pool, 0, np.zeros(64 * 32 * 4, np.uint8), np.zeros((1, 32), np.float32), out)
    assert not out.any()


def thread_affinities() -> list[set[int]]:
    """Of each thread. One that was joined may be listed a moment longer, and be gone when asked about."""
    affinities = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(ProcessLookupError):
            affinities.append(os.sched_getaffinity(int(task.name)))
    return affinities


def test_one_pinned_thread_per_further_cpu():
    cpus = usable_cpus()
    before = len(thread_affinities())
    pool = ThreadPool(cpus)
    run_something(pool)  # a thread pins itself before it takes its first work
    assert pool.size == len(cpus)
    assert pool.cpus == cpus
    assert len(thread_affinities()) == before + len(cpus) - 1
    for cpu in cpus[1:]:
        deadline = time.monotonic() + 5
        while {cpu} not in thread_affinities():
            assert time.monotonic() < deadline, f"no thread is pinned to CPU {cpu}"
            time.sleep(0.001)


def test_threads_end_with_the_pool():
    before = len(thread_affinities())
    for _ in range(5):
        pool = ThreadPool(usable_cpus())
        run_something(pool)
        del pool
    deadline = time.monotonic() + 5
    while len(thread_affinities()) != before:
        assert time.monotonic() < deadline, "threads outlive their pool"
        time.sleep(0.001)


def test_the_caller_is_not_pinned():
    before = os.sched_getaffinity(0)
    run_something(ThreadPool(usable_cpus()))
    assert os.sched_getaffinity(0) == before


def test_idle_pool_takes_no_time():
    # In a process of its own, where no other thread runs.
    script = (
        "import time, trimaran_kernels as k\n"
        "import numpy as np\n"
        "pool = k.ThreadPool(k.usable_cpus())\n"
        "k.read_memory(pool, np.zeros(1 << 22, np.uint8))\n"
        "start = time.process_time(); time.sleep(0.5); print(time.process_time() - start)\n"
    )
    output = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    assert float(output) < 0.05  # a spinning thread would take 0.5


def test_a_resting_pool_sleeps_and_works_again():
    pool = ThreadPool(usable_cpus())
    for _ in range(200):
        run_something(pool)
        pool.rest()
    run_something(pool)


def test_more_loops_than_anyone_counts():
    pool = ThreadPool(usable_cpus())
    for _ in range(2000):
        run_something(pool)


def test_every_item_is_done_once(rng):
    pool = ThreadPool(usable_cpus())
    words = rng.integers(0, 2**63, (5 << 17) + 3, dtype=np.uint64)
    assert read_memory(pool, words.view(np.uint8)) == int(np.bitwise_xor.reduce(words))


def test_unaligned_memory_is_refused():
    with pytest.raises(KernelError, match="raw: need an address that 8 divides"):
        read_memory(ThreadPool(usable_cpus()), np.zeros(65, np.uint8)[1:])


@pytest.mark.parametrize(
    ("cpus", "message"),
    [
        ([], "need at least one CPU"),
        ([0, 0], "CPU 0 is named twice"),
        ([-1], "may not use CPU -1"),
        ([99999], "CPU 99999"),
    ],
)
def test_bad_cpus(cpus, message):
    if cpus == [0, 0] and 0 not in os.sched_getaffinity(0):
        pytest.skip("this process may not use CPU 0")
    with pytest.raises(KernelError, match=message):
        ThreadPool(cpus)
