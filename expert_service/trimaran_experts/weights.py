"""The shard's weights, ready to compute from: attached if they are there, else read and packed."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from trimaran import mapped_file
from trimaran.config import ExpertsConfig
from trimaran.errors import PlanError
from trimaran.telemetry import Log
from trimaran_kernels import ThreadPool

from trimaran_experts.loader import ExpertLayer, ExpertMatrix
from trimaran_experts.numa import Seat
from trimaran_experts.packing import Job, Pack, Packer
from trimaran_experts.progress import Meter, OnProgress, Report
from trimaran_experts.store import memory, rooms
from trimaran_experts.store.catalog import remove_dead
from trimaran_experts.store.layout import Layout, PackedBytes, Place, plan_layout
from trimaran_experts.store.manifest import Identity
from trimaran_experts.store.segment import SUFFIX, Segment, SegmentFile, Wanted, open_segment

Bytes = NDArray[np.uint8]
WHOLE_LAYERS = 1 << 16
"""Added to a packing's version where it leaves out layers that another would pack in part."""

_log = Log(__name__)


@dataclass(frozen=True)
class Stored:
    """One matrix of a layer, all its experts: GGUF type id, bytes, and whether they are packed."""

    type: int
    data: Bytes
    packed: bool


@dataclass(frozen=True)
class StoredLayer:
    """A layer's matrices as the kernels take them."""

    layer: int
    gate: Stored
    up: Stored
    down: Stored


@dataclass(frozen=True)
class Weights:
    """All layers. `segment` is the store's file, if there is one; its lock lives as long as the layers."""

    layers: tuple[StoredLayer, ...]
    segment: Segment | None = None


@dataclass(frozen=True)
class Packing:
    """The kernels' packing: its version, the size of a packed expert, and how to pack one.

    Attributes:
        whole_layers: a layer with a matrix that cannot be packed stays in the file's encoding altogether.
    """

    version: int
    packed_bytes: PackedBytes
    pack: Pack
    whole_layers: bool = False

    def layout(self, layers: Sequence[ExpertLayer]) -> Layout:
        """Where these layers' matrices lie, packed this way."""
        return plan_layout(layers, self.packed_bytes, whole_layers=self.whole_layers)

    def version_of(self, layers: Sequence[ExpertLayer]) -> int:
        """Of what becomes of these layers: the plain version where leaving layers whole changes nothing."""
        plain = self.layout(layers) == plan_layout(layers, self.packed_bytes)
        return self.version if plain else self.version + WHOLE_LAYERS


@dataclass(frozen=True)
class Task:
    """What is to be loaded, and with what.

    Attributes:
        seat: which NUMA nodes hold the weights. ram_available: bytes.
        on_progress: hears how far it is. stopped: is asked now and then whether to give up.
    """

    config: ExpertsConfig
    layers: Sequence[ExpertLayer]
    identity: Identity
    packing: Packing
    pool: ThreadPool
    seat: Seat
    ram_available: int
    on_progress: OnProgress
    stopped: Callable[[], bool]

    @property
    def matrices(self) -> list[ExpertMatrix]:
        """Every matrix, in the model's order."""
        return [matrix for layer in self.layers for matrix in layer.matrices]


def obtain(task: Task) -> Weights | None:
    """The weights, in the store that the configuration asks for; None if it was told to stop.

    Raises:
        ConfigError: the store cannot be used. PlanError: no room. PeerError: another service packs the same
            weights and does not get on. ModelFileError: the file cannot be read.
    """
    layout = task.packing.layout(task.layers)
    choice = _choose(task, layout)
    _log.info("store of the experts", store=choice.kind, why=choice.why)
    weights: Weights | None
    if choice.kind == "off":
        weights = _mapped(task)
    elif choice.kind == "private":
        weights = _private(task, layout)
    else:
        weights = _shared_or_private(task, layout, choice.kind)
    return None if task.stopped() else weights


def _choose(task: Task, layout: Layout) -> rooms.Choice:
    sliced = any(not matrix.is_whole for matrix in task.matrices)
    if task.config.store != "auto":
        return rooms.choose(task.config.store, layout.nbytes, 0, task.ram_available, sliced=sliced)
    directory = Path(task.config.store_dir) if task.config.store_dir else rooms.default_directory("tmpfs")
    if (directory / f"{task.identity.key}{SUFFIX}").exists():
        return rooms.Choice("tmpfs", "packed before")
    free = rooms.free_bytes(directory)
    return rooms.choose("auto", layout.nbytes, free, task.ram_available, sliced=sliced)


# --- stores -------------------------------------------------------------------------------------------------


def _shared_or_private(task: Task, layout: Layout, kind: rooms.Kind) -> Weights | None:
    try:
        return _shared(task, layout, kind)
    except PlanError as error:
        if task.config.store != "auto":
            raise
        _log.warning("weights cannot be kept for the next start", reason=str(error))
        return _private(task, layout)


def _shared(task: Task, layout: Layout, kind: rooms.Kind) -> Weights | None:
    directory = rooms.open_directory(kind, task.config.store_dir)
    for path in remove_dead(directory):
        _log.info("removed what a killed service left", path=str(path))

    def fill(data: Bytes, file: SegmentFile, offset: int, note_written: Callable[[int], None]) -> bool:
        return _fill(_noting(task, layout, note_written), layout, data, (file.fd, offset))

    wanted = Wanted(
        task.identity,
        layout,
        make_room=lambda needed: rooms.check_room(kind, directory, needed, task.ram_available),
        fill=fill,
        on_progress=lambda fraction: task.on_progress(Report(fraction)),
        stopped=task.stopped,
    )
    segment = open_segment(directory / f"{task.identity.key}{SUFFIX}", wanted)
    if segment is None:
        return None
    _settle(task, segment.data)
    _log.info("weights stay for the next start", path=str(segment.path))
    return Weights(_cut(layout, segment.data), segment)


def _private(task: Task, layout: Layout) -> Weights | None:
    rooms.check_room("private", None, layout.nbytes, task.ram_available)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    data = np.frombuffer(mmap.mmap(-1, max(1, layout.nbytes), flags), np.uint8)
    mapped_file.wish_huge_pages(data)
    if not _fill(task, layout, data, (-1, 0)):
        return None
    _report(task, data)
    return Weights(_cut(layout, data))


def _mapped(task: Task) -> Weights:
    """The file's own bytes, every page touched, so that the first tokens need not wait for the disk."""
    total = sum(matrix.raw.size for matrix in task.matrices)
    meter = Meter("reading experts", total, task.on_progress)
    for matrix in task.matrices:
        mapped_file.populate_for_reading(matrix.raw, meter.add, task.stopped)
    _say_done(meter, total, 0)
    return Weights(
        tuple(
            StoredLayer(layer.layer, *(Stored(int(m.type), m.raw, packed=False) for m in layer.matrices))
            for layer in task.layers
        )
    )


# --- parts --------------------------------------------------------------------------------------------------


def _noting(task: Task, layout: Layout, note_written: Callable[[int], None]) -> Task:
    """The same task, whose progress also goes to those who wait for the segment."""

    def on_progress(report: Report) -> None:
        note_written(int(layout.nbytes * report.fraction))
        task.on_progress(report)

    return replace(task, on_progress=on_progress)


def _fill(task: Task, layout: Layout, data: Bytes, file: tuple[int, int]) -> bool:
    """Read and pack everything into `data`; `file` is the descriptor behind it and where the data begins."""

    def prepare(first: int, end: int) -> None:
        try:
            memory.populate_for_writing(data, first, end, *file)
        except OSError as error:
            raise PlanError(
                f"memory for the packed experts ran out: {error.strerror}",
                remedy="`trimaran experts --list` shows what is kept; or set experts.store=off",
            ) from error

    total = sum(matrix.raw.size for matrix in task.matrices)
    meter = Meter("packing experts", total, task.on_progress)
    if task.seat.nodes and not memory.place_on_nodes(data, task.seat.nodes, task.seat.policy):
        _log.warning(
            "the kernel refused the placement on NUMA nodes",
            nodes=task.seat.nodes,
            remedy="a container needs the capability SYS_NICE for it",
        )
    jobs = [
        Job(matrix, place, _bytes_of(place, data))
        for matrix, place in zip(task.matrices, layout.places, strict=True)
    ]
    packer = Packer(task.pool, task.packing.pack, prepare, meter.add, task.stopped)
    done = packer.run(jobs)
    if done:
        _say_done(meter, layout.nbytes, layout.packed_bytes)
    return done


def _settle(task: Task, data: Bytes) -> None:
    """Map every page of an attached segment, and say how it lies."""
    mapped_file.wish_huge_pages(data)
    meter = Meter("attaching experts", data.size, task.on_progress)
    mapped_file.populate_for_reading(data, meter.add, task.stopped)
    _log.info("experts are attached", seconds=meter.seconds, gigabytes=round(data.size / 1e9, 3))
    _report(task, data)


def _report(task: Task, data: Bytes) -> None:
    refused = memory.lock_in_memory(data) if task.config.lock_memory else ""
    if refused:
        _log.warning("weights are not locked in memory", reason=refused, remedy="raise `ulimit -l`")
    share = round(100 * memory.huge_page_bytes(data) / max(1, data.size))
    is_locked = task.config.lock_memory and not refused
    _log.info("memory of the experts", huge_pages_percent=share, locked=is_locked)


def _say_done(meter: Meter, nbytes: int, packed: int) -> None:
    _log.info(
        "experts are in memory",
        gigabytes=round(nbytes / 1e9, 3),
        packed_percent=round(100 * packed / max(1, nbytes)),
        gb_per_s=meter.gb_per_s,
        seconds=meter.seconds,
    )


def _cut(layout: Layout, data: Bytes) -> tuple[StoredLayer, ...]:
    """The layers as views of the store's data."""
    stored = [Stored(place.type, _bytes_of(place, data), place.packed) for place in layout.places]
    return tuple(
        StoredLayer(layout.places[index].layer, *stored[index : index + 3])
        for index in range(0, len(stored), 3)
    )


def _bytes_of(place: Place, data: Bytes) -> Bytes:
    return data[place.offset : place.offset + place.nbytes]
