"""Fixed sizes that the plan counts with and the services keep to."""

from __future__ import annotations

from trimaran.config import AttnConfig

PAGE_TOKENS = 64
"""Tokens of a page of the latent cache."""

SMALLEST_CONTEXT = 2048

GPU_RESERVE = 768 << 20
"""CUDA's own context, its libraries' workspaces and fragmentation; on each GPU."""

RAM_RESERVE = 1 << 30
"""The services' Python processes and the rest of the machine."""

GPU_PART_TOKENS = 2048
"""Tokens of a context whose keys and values a GPU expands at a time."""

LONE_STEPS = 4
"""Budgets that a CPU's step may take for one prompt alone, if nothing else is configured."""


def largest_step(config: AttnConfig, *, on_gpu: bool) -> int:
    """Tokens of the longest step: of one long prompt alone."""
    lone = config.lone_step_tokens
    if lone is None:
        lone = config.max_step_tokens * (1 if on_gpu else LONE_STEPS)
    return max(lone, config.max_step_tokens)
