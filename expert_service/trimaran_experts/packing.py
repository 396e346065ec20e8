"""Reads experts ahead in a few threads and packs them on the pool: file and memory work at the same time."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from trimaran.errors import ModelFileError
from trimaran_kernels import ThreadPool

from trimaran_experts.loader import ExpertMatrix
from trimaran_experts.store.layout import Place

Bytes = NDArray[np.uint8]
Pack = Callable[[ThreadPool, int, Bytes, int, int, Bytes], None]
"""(pool, GGUF type, one expert's bytes in the file's encoding, rows, columns, where they go)."""
Prepare = Callable[[int, int], None]
"""Makes the half-open range of the store's data ready to be written to, or raises."""

READERS = 4
_UNIT = 32 << 20
_BORDER = 4096


@dataclass(frozen=True)
class Job:
    """A matrix, where it goes, and the memory there."""

    matrix: ExpertMatrix
    place: Place
    target: Bytes

    @property
    def is_copy(self) -> bool:
        """Whether the file's bytes go there as they are."""
        return self.matrix.is_whole and not self.place.packed


@dataclass(frozen=True)
class _Unit:
    """Some experts of a job: what is read at once."""

    job: Job
    first: int
    count: int

    @property
    def file_bytes(self) -> int:
        return self.count * self.job.matrix.file_bytes

    def target(self, index: int, count: int) -> Bytes:
        """Memory of `count` experts, from the unit's `index`-th on."""
        size, first = self.job.place.expert_bytes, self.first + index
        return self.job.target[first * size : (first + count) * size]


@dataclass(frozen=True)
class Packer:
    """Brings matrices to their places.

    The file's pages leave the page cache behind the reading, so that the weights are in memory once.

    Attributes:
        on_bytes: takes the bytes of the file that were brought home since the last time.
        prepare: is called in a reader's thread before memory is written to.
        stopped: is asked now and then whether to give up.
    """

    pool: ThreadPool
    pack: Pack
    prepare: Prepare
    on_bytes: Callable[[int], None]
    stopped: Callable[[], bool]
    _spare: list[Bytes] = field(default_factory=list)

    def run(self, jobs: Sequence[Job]) -> bool:
        """All jobs; False if it was told to stop.

        Raises:
            ModelFileError: a file cannot be read any more. And what `prepare` raises.
        """
        with ExitStack() as stack:
            files = {path: _open(stack, path) for path in {job.matrix.path for job in jobs}}
            readers = stack.enter_context(ThreadPoolExecutor(READERS, thread_name_prefix="experts-reader"))
            pending: deque[tuple[_Unit, Future[Bytes]]] = deque()
            stack.callback(lambda: [future.cancel() for _, future in pending])
            for unit in _units(jobs):
                fd, buffer = files[unit.job.matrix.path], self._buffer(unit)
                pending.append((unit, readers.submit(self._read, unit, fd, buffer)))
                if len(pending) > READERS and not self._finish(*pending.popleft()):
                    return False
            while pending:
                if not self._finish(*pending.popleft()):
                    return False
        return True

    def _finish(self, unit: _Unit, reading: Future[Bytes]) -> bool:
        """Pack a unit once it is read; False if told to stop."""
        if self.stopped():
            reading.cancel()
            return False
        read = reading.result()
        if not unit.job.is_copy:
            self._pack(unit, read)
            assert isinstance(read.base, np.ndarray)
            self._spare.append(read.base)
        self.on_bytes(unit.file_bytes)
        return True

    def _pack(self, unit: _Unit, read: Bytes) -> None:
        matrix, place = unit.job.matrix, unit.job.place
        for index, expert in enumerate(read.reshape(unit.count, -1)):
            part, target = matrix.part(expert), unit.target(index, 1)
            if place.packed:
                self.pack(self.pool, place.type, part, place.rows, place.columns, target)
            else:
                target[:] = part

    def _buffer(self, unit: _Unit) -> Bytes:
        """Where a unit is read to: its target itself, or a buffer that was used before."""
        if unit.job.is_copy:
            return unit.target(0, unit.count)
        size = unit.file_bytes
        fitting = next((index for index, buffer in enumerate(self._spare) if buffer.size >= size), None)
        return (np.empty(size, np.uint8) if fitting is None else self._spare.pop(fitting))[:size]

    def _read(self, unit: _Unit, fd: int, buffer: Bytes) -> Bytes:
        matrix, place = unit.job.matrix, unit.job.place
        start = place.offset + unit.first * place.expert_bytes
        self.prepare(start, start + unit.count * place.expert_bytes)
        offset, size, done = matrix.offset + unit.first * matrix.file_bytes, buffer.size, 0
        while done < size:
            done += _read_some(fd, buffer[done:], offset + done, matrix)
        os.posix_fadvise(fd, offset // _BORDER * _BORDER, size + offset % _BORDER, os.POSIX_FADV_DONTNEED)
        return buffer


def _units(jobs: Sequence[Job]) -> Iterator[_Unit]:
    for job in jobs:
        step = max(1, _UNIT // job.matrix.file_bytes)
        for first in range(0, job.matrix.n_experts, step):
            yield _Unit(job, first, min(step, job.matrix.n_experts - first))


def _read_some(fd: int, buffer: Bytes, offset: int, matrix: ExpertMatrix) -> int:
    try:
        count = os.preadv(fd, [buffer.data], offset)
    except OSError as error:
        raise ModelFileError(f"{matrix.path}: cannot be read: {error.strerror}") from error
    if count == 0:
        raise ModelFileError(f"{matrix.path}: ends within tensor '{matrix.name}'", remedy="copy it anew")
    return count


def _open(stack: ExitStack, path: str) -> int:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ModelFileError(f"{path}: {error.strerror}") from error
    stack.callback(os.close, fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
    return fd
