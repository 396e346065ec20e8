"""Where the model computes: device, threads, element type."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import trimaran_kernels
from trimaran.config import AttnConfig
from trimaran.errors import ConfigError, GpuMemoryError
from trimaran.plan import GPU_RESERVE

LEAST_CAPABILITY = (8, 0)
"""Ampere: the first GPUs with bfloat16."""


def count_gpus() -> int:
    """How many GPUs there are, numbered as nvidia-smi does."""
    # The plan is made by its order; CUDA's own puts the fastest first.
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    return torch.cuda.device_count()


def choose_device(wanted: str) -> torch.device:
    """The device of `attn.device`; of several the first, where tokens enter.

    Raises:
        ConfigError: there is no such GPU, or it is too old.
    """
    count = count_gpus()
    names = ("cuda:0" if count else "cpu") if wanted == "auto" else wanted
    devices = [torch.device("cuda:0" if name == "cuda" else name) for name in names.split("+")]
    for device in devices:
        if device.type == "cuda" and (device.index or 0) >= count:
            found = f"{count} GPUs are" if count != 1 else "1 GPU is"
            raise ConfigError(f"attn.device is {wanted}, but {found} usable here", remedy="use cpu or auto")
        if device.type == "cuda":
            _check_capability(device)
    return devices[0]


def _check_capability(device: torch.device) -> None:
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) < LEAST_CAPABILITY:
        least = ".".join(map(str, LEAST_CAPABILITY))
        name = torch.cuda.get_device_name(device)
        raise ConfigError(
            f"{name} has compute capability {major}.{minor}, the kernels need {least}",
            remedy="use --device cpu",
        )


def enter_gpus(planned: Mapping[torch.device, int]) -> None:
    """Cap the allocator on each GPU, keep sums exact, and make the first the calling thread's current one.

    Args:
        planned: bytes by GPU, in the order of the layers; what CUDA itself takes beside the allocator is held
            back. Nothing where there is none.

    Raises:
        ConfigError: a GPU is too old; `attn.device: auto` may come to one that nobody named.
    """
    for device, nbytes in planned.items():
        _check_capability(device)
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, (nbytes - GPU_RESERVE) / total), device)
    for device in list(planned)[:1]:
        sum_in_float32()
        torch.cuda.set_device(device)


def sum_in_float32() -> None:
    """Products of 16-bit matrices: unless told otherwise, cuBLAS may add up parts of a sum in 16 bits."""
    matmul = torch.backends.cuda.matmul
    matmul.allow_bf16_reduced_precision_reduction = False
    matmul.allow_fp16_reduced_precision_reduction = False


@contextmanager
def explained_memory(what: str) -> Iterator[None]:
    """Turn torch's out-of-memory errors into ours.

    Args:
        what: needed the memory, e.g. "loading the model".

    Raises:
        GpuMemoryError: with a remedy.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        torch.cuda.empty_cache()  # does nothing where there is no GPU
        raise GpuMemoryError(
            f"GPU memory ran out while {what}: {str(error).splitlines()[0]}",
            remedy="lower attn.context_length, attn.max_running or attn.max_step_tokens, or free the GPU",
        ) from error


def compute_dtype(device: torch.device) -> torch.dtype:
    """Float32 on a CPU, where it costs least; bfloat16 on a GPU."""
    return torch.float32 if device.type == "cpu" else torch.bfloat16


def start_threads(config: AttnConfig) -> trimaran_kernels.ThreadPool:
    """The kernels' threads, as many as the configuration or the machine says.

    Torch gets one: what is left to it on a CPU is small, and its idle OpenMP threads would spin on the cores
    that the experts compute on.
    """
    torch.set_num_threads(1)
    return trimaran_kernels.ThreadPool(trimaran_kernels.usable_cpus(config.threads))
