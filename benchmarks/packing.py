"""Bringing experts into memory: the speed of packing, and the time to attach what was packed before.

    python benchmarks/packing.py --gigabytes 2 --type Q4_K

A file of random blocks is packed, and its segment found again. Packing is compared
with reading the same file by the same threads without packing, in the same state of the page cache.
"""

from __future__ import annotations

import argparse
import mmap
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from _report import Report
from trimaran.config import ExpertsConfig
from trimaran.gguf import GGMLType
from trimaran_experts.kernel_packing import kernel_packing
from trimaran_experts.loader import ExpertLayer, ExpertMatrix
from trimaran_experts.numa import Seat
from trimaran_experts.store.manifest import Identity
from trimaran_experts.weights import Packing, Task, obtain
from trimaran_kernels import ThreadPool, usable_cpus

HIDDEN, WIDE, EXPERTS = 7168, 2048, 8


def main() -> None:
    """Measure and report."""
    options = parse_options()
    kind = GGMLType[options.type]
    report = Report("packing", gigabytes=options.gigabytes, type=options.type, threads=len(usable_cpus()))
    with (
        tempfile.TemporaryDirectory(dir=options.folder) as folder,
        tempfile.TemporaryDirectory(dir="/dev/shm") as store,
    ):
        path = Path(folder) / "experts"
        layers = write_experts(path, kind, int(options.gigabytes * 1e9))
        nbytes = path.stat().st_size
        plain = Packing(0, lambda *_: None, lambda *_: None)
        cold, read = (timed(task(layers, packing, "private")) for packing in (kernel_packing("int8"), plain))
        report.row(
            "pack, into private memory",
            nbytes / cold / 1e9,
            "GB/s",
            floor=nbytes / read / 1e9,
            higher_is_better=True,
        )
        kept = task(layers, kernel_packing("int8"), "tmpfs", store)
        report.row(
            "pack, into a tmpfs",
            nbytes / timed(kept) / 1e9,
            "GB/s",
            floor=nbytes / read / 1e9,
            higher_is_better=True,
        )
        seconds = timed(kept)
        report.row("attach", seconds, "s")
        report.row("attach, for 10 GB", seconds * 10e9 / nbytes, "s")
        for entry in Path(store).iterdir():
            entry.unlink()
    report.write(options.json)


def write_experts(path: Path, kind: GGMLType, nbytes: int) -> list[ExpertLayer]:
    """A file of as many layers of 8 experts of DeepSeek-V3's size as fit, and what the loader says of it."""
    random = np.random.default_rng(0)
    sizes = [EXPERTS * rows * kind.row_bytes(columns) for rows, columns in shapes()]
    count = max(1, nbytes // sum(sizes))
    block = random.integers(0, 255, max(sizes), np.uint8)
    with path.open("wb") as file:
        for _ in range(count):
            for size in sizes:
                file.write(block[:size].data)
        file.flush()
        os.fsync(file.fileno())
    with path.open("rb") as file:
        data = np.frombuffer(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ), np.uint8)
    return [layer_at(path, data, kind, index, sizes) for index in range(count)]


def shapes() -> list[tuple[int, int]]:
    """Of one expert's gate, up and down."""
    return [(WIDE, HIDDEN), (WIDE, HIDDEN), (HIDDEN, WIDE)]


def layer_at(path: Path, data: np.ndarray, kind: GGMLType, index: int, sizes: list[int]) -> ExpertLayer:
    """The `index`-th layer of the file."""
    matrices, offset = [], index * sum(sizes)
    for name, shape, size in zip(("gate", "up", "down"), shapes(), sizes, strict=True):
        raw = data[offset : offset + size]
        rows, columns = (0, shape[0]), (0, shape[1])
        matrices.append(ExpertMatrix(name, kind, EXPERTS, shape, rows, columns, raw, str(path), offset))
        offset += size
    return ExpertLayer(index, *matrices)


def task(layers: list[ExpertLayer], packing: Packing, store: str, folder: str | None = None) -> Task:
    """Bring all of it into this store."""
    cpus = usable_cpus()
    return Task(
        config=ExpertsConfig(store=store, store_dir=folder),  # type: ignore[arg-type]
        layers=layers,
        identity=Identity("benchmark", packing.version, "0", (0, EXPERTS), (0, WIDE), (), "benchmark"),
        packing=packing,
        pool=ThreadPool(cpus),
        seat=Seat(tuple(cpus), (), "default"),
        ram_available=1 << 50,
        on_progress=lambda _report: None,
        stopped=lambda: False,
    )


def timed(work: Task, obtained: Callable[[Task], object] = obtain) -> float:
    """Seconds to obtain the weights, which are given back at once."""
    start = time.perf_counter()
    if obtained(work) is None:
        raise RuntimeError("loading gave up")
    return time.perf_counter() - start


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=2.0, help="size of the file")
    parser.add_argument("--type", default="Q4_K", help="GGUF type of the experts")
    parser.add_argument("--folder", type=Path, help="where the file goes; default: the temporary directory")
    parser.add_argument(
        "--json", type=Path, default=Path("build/bench/packing.json"), help="where the figures go"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
