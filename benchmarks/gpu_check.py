"""Build, check and measure everything that needs a GPU: one command, a table, a JSON file.

    make gpu-check
    python benchmarks/gpu_check.py --interpret     the checks alone, tiny, without a GPU

Each kernel is compared with its torch reference on fresh random inputs; then a whole random model on the GPU
with the CPU; then speeds are held against the GPU's own copy and product. Exit code 1: something differs.
Without a GPU everything is skipped, and a line says so.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from _report import Report


def main() -> int:
    """Run; the exit code."""
    options = parse_options()
    if options.interpret:
        os.environ["TRITON_INTERPRET"] = "1"
    elif not torch.cuda.is_available():
        print("gpu-check: skipped: torch sees no CUDA GPU here")
        Report("gpu-check", skipped="no CUDA GPU").write(options.json)
        return 0
    started = time.monotonic()
    torch.manual_seed(options.seed)
    device = torch.device("cpu" if options.interpret else "cuda:0")
    report = Report("gpu-check", seed=options.seed, **gpu_facts(device))
    failures = check(report, device, tiny=options.interpret)
    if options.interpret:
        print("gpu-check: skipped without a GPU: the whole model, and all speeds")
    else:
        failures += measure(report, device)
    report.write(options.json)
    print(f"gpu-check: {'FAILED: ' + ', '.join(failures) if failures else 'passed'}", end="")
    print(f" in {time.monotonic() - started:.0f} s, seed {options.seed}")
    return 1 if failures else 0


def check(report: Report, device: torch.device, *, tiny: bool) -> list[str]:
    """Compare every kernel with its reference; the cases that differ."""
    # Triton decides when it is imported whether it interprets.
    from _gpu_checks import REAL, TINY, run_checks  # noqa: PLC0415

    failures = []
    for result in run_checks(TINY if tiny else REAL, device):
        report.row(
            f"check {result.case}", result.error, "rel. error", peer="allowed", peer_value=result.limit
        )
        if not result.passed:
            failures.append(f"{result.case} (error {result.error:.2g}, allowed {result.limit:.2g})")
    return failures


def measure(report: Report, device: torch.device) -> list[str]:
    """The whole model against the CPU, then speeds; what differs."""
    from _gpu_model import MODEL_LIMIT, compare_models  # noqa: PLC0415
    from _gpu_speed import add_rows, measure_ceilings  # noqa: PLC0415

    failures = []
    for case, error in compare_models(device):
        report.row(f"check {case}", error, "rel. error", peer="allowed", peer_value=MODEL_LIMIT)
        if not error <= MODEL_LIMIT:
            failures.append(f"{case} (error {error:.2g}, allowed {MODEL_LIMIT:.2g})")
    add_rows(report, measure_ceilings(device), device)
    return failures


def gpu_facts(device: torch.device) -> dict[str, Any]:
    """The GPU and the versions that a reader needs."""
    import triton  # noqa: PLC0415 as in `check`

    facts: dict[str, Any] = {"torch": str(torch.__version__), "triton": triton.__version__}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {"gpu": properties.name, "gpu_memory": properties.total_memory, "cuda": torch.version.cuda}
        facts["multiprocessors"] = properties.multi_processor_count
    return facts


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--interpret", action="store_true", help="check in Triton's interpreter, on the CPU")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the inputs; default: the time")
    parser.add_argument("--json", type=Path, default=None, help="where the results go")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
