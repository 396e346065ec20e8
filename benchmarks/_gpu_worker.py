"""Runs sections of gpu-check and writes what comes of them, a JSON line each, for `_gpu_watch`."""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import sys
import traceback
from collections.abc import Callable
from functools import partial
from typing import BinaryIO

from _gpu_messages import Begin, End, Facts, Failed, Message, encode
from _gpu_sections import SECTIONS, Section


def main() -> int:
    """Run; the exit code is 1 if a section broke, and those after it have not run then."""
    options = _parse_options()
    if options.interpret:
        os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it when it is imported
    out = _private_stdout()
    import torch  # noqa: PLC0415 after the environment is set

    emit = partial(_write, out)
    if not options.interpret and not torch.cuda.is_available():
        emit(Facts({"skipped": "no CUDA GPU"}))
        return 0
    from _gpu_bench import Bench  # noqa: PLC0415 as above
    from trimaran_attn.device import sum_in_float32  # noqa: PLC0415 as above

    sum_in_float32()  # as the service does
    device = torch.device("cpu" if options.interpret else "cuda:0")
    emit(Facts(_facts(device)))
    bench = Bench(device, emit)
    wanted = [section for section in SECTIONS if section.name in options.sections]
    return 0 if all(_run(section, bench, emit, options.seed) for section in wanted) else 1


def _run(section: Section, bench: object, emit: Callable[[Message], None], seed: int) -> bool:
    """One section; False if it broke: a fault on the GPU leaves a process unusable, so it is given up."""
    import torch  # noqa: PLC0415 as in `main`
    from _gpu_bench import reason_of  # noqa: PLC0415 as in `main`

    emit(Begin(section.name))
    module, _, function = section.function.partition(":")
    torch.manual_seed(seed)
    try:
        getattr(importlib.import_module(module), function)(bench)
        gc.collect()  # the next section may measure what it holds itself
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
    except Exception as error:
        traceback.print_exc()
        emit(Failed(f"{section.name}: {reason_of(error)}"))
        return False
    emit(End(section.name))
    return True


_SIZES = ("L2_cache_size", "shared_memory_per_block_optin", "shared_memory_per_multiprocessor")


def _facts(device: object) -> dict[str, object]:
    """The GPU and the versions that a reader needs."""
    import torch  # noqa: PLC0415 as in `main`
    import triton  # noqa: PLC0415

    facts: dict[str, object] = {"torch": str(torch.__version__), "triton": triton.__version__}
    if torch.device(str(device)).type == "cuda":
        properties = torch.cuda.get_device_properties(0)
        facts |= {"gpu": properties.name, "gpu_memory": properties.total_memory, "cuda": torch.version.cuda}
        facts |= {"multiprocessors": properties.multi_processor_count, "gpus": torch.cuda.device_count()}
        facts |= {"capability": f"{properties.major}.{properties.minor}"}
        # Not every version of torch tells these.
        facts |= {name: getattr(properties, name, None) for name in _SIZES}
    return facts


def _private_stdout() -> BinaryIO:
    """Standard output for results alone; what libraries print goes to standard error."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return out


def _write(out: BinaryIO, message: Message) -> None:
    out.write(encode(message))
    out.flush()


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--interpret", action="store_true")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("sections", nargs="+")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
