"""Write a model of a real one's dimensions with random weights, for measurements on a machine without it.

python benchmarks/synth_model.py build/models/v2-lite.gguf
python benchmarks/synth_model.py build/models/v2-lite-3.gguf --layers 3
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path

from trimaran.gguf.mix import MIXES
from trimaran.synth import REAL_SPECS, write_full_size_model, write_hollow_model
from trimaran.units import format_bytes


def main() -> None:
    """Write the file, unless it is there already."""
    options = parse_options()
    path: Path = options.path
    if path.exists():
        print(f"{path} is there already")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    check_room(options)
    start = time.perf_counter()
    write_full_size_model(path, options.model, mix=options.mix, n_layers=options.layers, seed=options.seed)
    size, seconds = path.stat().st_size, time.perf_counter() - start
    print(f"{path}: {format_bytes(size)} in {seconds:.0f} s")


def check_room(options: argparse.Namespace) -> None:
    """End with one line if the disk has no room for the file: only a hollow one tells how large it is."""
    if options.layers is not None:
        return
    hollow = options.path.with_name(options.path.name + ".hollow")
    try:
        size = write_hollow_model(hollow, options.model, mix=options.mix).stat().st_size
    finally:
        hollow.unlink(missing_ok=True)
    free = shutil.disk_usage(options.path.parent).free
    if size > free:
        raise SystemExit(
            f"{options.path} would have {format_bytes(size)}, the disk has room for {format_bytes(free)}"
        )


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", type=Path)
    parser.add_argument("--model", default="DeepSeek-V2-Lite", choices=sorted(REAL_SPECS))
    parser.add_argument("--mix", default="Q4_K_M", choices=sorted(MIXES))
    parser.add_argument("--layers", type=int, help="fewer layers, at least 2; the first ones are dense")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.layers is not None and options.layers < 2:
        parser.error("--layers must be at least 2")
    return options


if __name__ == "__main__":
    main()
