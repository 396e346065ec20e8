"""How fast this machine's memory is, measured in a fraction of a second."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from numpy.typing import NDArray

_BUFFER_BYTES = 64 << 20
_ROUNDS = 4

Pair = tuple[NDArray[np.uint8], NDArray[np.uint8]]


def measure_ram_bandwidth(threads: int) -> float:
    """Bytes a second that `threads` threads copy together, reads and writes counted: the best of some rounds.

    Each thread has buffers of its own, larger than a core's share of cache; numpy copies without the GIL.
    """
    buffers = [_pair() for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        times = [_timed_round(pool, buffers) for _ in range(_ROUNDS)]
    return 2 * _BUFFER_BYTES * threads / min(times)


def _pair() -> Pair:
    return np.ones(_BUFFER_BYTES, np.uint8), np.zeros(_BUFFER_BYTES, np.uint8)


def _timed_round(pool: ThreadPoolExecutor, buffers: list[Pair]) -> float:
    started = time.perf_counter()
    for future in [pool.submit(partial(np.copyto, target, source)) for source, target in buffers]:
        future.result()
    return time.perf_counter() - started
