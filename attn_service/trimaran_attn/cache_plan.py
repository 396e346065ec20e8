"""How large the KV cache is, and so how long a context can be."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from trimaran.config import AttnConfig
from trimaran.errors import ConfigError, PlanError
from trimaran.spec import ModelSpec
from trimaran.units import format_bytes, parse_bytes

from trimaran_attn.kv_cache import PAGE_SIZE, page_bytes
from trimaran_attn.pages import pages_for

# The rest is for the page cache of the model file (CPU), or for what the layers compute in (GPU).
CPU_SHARE = 0.25
GPU_SHARE = 0.9


@dataclass(frozen=True)
class CachePlan:
    """Pages of the cache, and the longest context that a request may have, in tokens."""

    n_pages: int
    context_length: int


def plan_cache(spec: ModelSpec, config: AttnConfig, dtype: torch.dtype, available: int) -> CachePlan:
    """Size the cache.

    Args:
        spec: the model.
        config: `context_length`, `kv_memory`, `max_running`.
        dtype: element type of the cache.
        available: bytes that `kv_memory: auto` may use; see `available_memory`.

    Raises:
        ConfigError: a longer context than the model's is asked for.
        PlanError: the memory does not hold the context that is asked for.
    """
    wanted = config.context_length or spec.context_length
    if wanted > spec.context_length:
        raise ConfigError(
            f"attn.context_length is {wanted}, the model was made for {spec.context_length}",
            remedy="lower it, or leave it out",
        )
    budget = available if config.kv_memory == "auto" else parse_bytes(config.kv_memory)
    size = page_bytes(spec, dtype)
    n_pages = min(budget // size, pages_for(wanted, PAGE_SIZE) * config.max_running)
    required = 1 if config.context_length is None else pages_for(wanted, PAGE_SIZE)
    if n_pages < required:
        raise PlanError(
            f"a context of {wanted} tokens needs {format_bytes(pages_for(wanted, PAGE_SIZE) * size)} of KV "
            f"cache, attn.kv_memory ({config.kv_memory}) gives {format_bytes(budget)}",
            remedy="raise attn.kv_memory or lower attn.context_length",
        )
    return CachePlan(n_pages, min(wanted, n_pages * PAGE_SIZE))


def available_memory(device: torch.device) -> int:
    """Bytes that a cache on this device may take."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * GPU_SHARE)
    return int(free_host_memory() * CPU_SHARE)


def free_host_memory(root: Path = Path("/")) -> int:
    """Bytes that this process may still take: what the machine has free and its cgroup allows."""
    meminfo = (root / "proc/meminfo").read_text()
    match = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo, re.MULTILINE)
    assert match is not None, "every Linux since 3.14 tells MemAvailable"
    free = int(match[1]) * 1024
    cgroup = root / "sys/fs/cgroup"
    limit, used = _number(cgroup / "memory.max"), _number(cgroup / "memory.current")
    if limit is not None and used is not None:
        free = min(free, max(0, limit - used))
    return free


def _number(path: Path) -> int | None:
    """The number in a file, None if there is none."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
