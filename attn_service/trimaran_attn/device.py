"""Where the model computes: device, threads, element type."""

from __future__ import annotations

import torch
import trimaran_kernels
from trimaran.config import AttnConfig
from trimaran.errors import ConfigError


def choose_device(wanted: str) -> torch.device:
    """The device of `attn.device`.

    Raises:
        ConfigError: there is no such GPU.
    """
    count = torch.cuda.device_count()
    if wanted == "auto":
        return torch.device("cuda:0" if count else "cpu")
    device = torch.device(wanted)
    if device.type == "cuda" and (device.index or 0) >= count:
        found = f"{count} GPUs are" if count != 1 else "1 GPU is"
        raise ConfigError(f"attn.device is {wanted}, but {found} usable here", remedy="use cpu or auto")
    return device


def compute_dtype(device: torch.device) -> torch.dtype:
    """Float32 on a CPU, where it costs least; bfloat16 on a GPU."""
    return torch.float32 if device.type == "cpu" else torch.bfloat16


def start_threads(config: AttnConfig) -> trimaran_kernels.ThreadPool:
    """Size torch's threads and the kernels' pool from the configuration and the machine."""
    cpus = trimaran_kernels.usable_cpus(config.threads)
    torch.set_num_threads(len(cpus))
    return trimaran_kernels.ThreadPool(cpus)
