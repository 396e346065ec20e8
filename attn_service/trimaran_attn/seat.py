"""Where the engine's thread computes: on the one CPU of the kernels' threads that is left to their caller."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from trimaran_attn.kv_cache import LatentCache
from trimaran_attn.model.batch import Batch, Output
from trimaran_attn.runner import Model


@contextmanager
def seated(cpu: int) -> Iterator[None]:
    """Keep the calling thread on `cpu` meanwhile, if it may still use it: a container's CPUs can change."""
    allowed = os.sched_getaffinity(0)
    with suppress(OSError):
        os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        with suppress(OSError):
            os.sched_setaffinity(0, allowed)


class SeatedModel:
    """A model whose steps are computed on one CPU.

    The kernels' other threads are pinned to theirs. A caller that the operating system puts beside one of
    them takes turns with it, and one core does the work of all. Only steps are bound: threads that start in
    between, to compile grammars, would inherit it.

    Args:
        model: computed in the calling thread and a `ThreadPool`'s.
        cpu: the pool's first.
    """

    def __init__(self, model: Model, cpu: int) -> None:
        self._model = model
        self._cpu = cpu

    def forward(self, batch: Batch, cache: LatentCache) -> Output:
        """As the model's."""
        with seated(self._cpu):
            return self._model.forward(batch, cache)
