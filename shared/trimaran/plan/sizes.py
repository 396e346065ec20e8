"""Fixed sizes that the plan counts with and the services keep to."""

from __future__ import annotations

PAGE_TOKENS = 64
"""Tokens of a page of the latent cache."""

SMALLEST_CONTEXT = 2048

GPU_RESERVE = 768 << 20
"""CUDA's own context, its libraries' workspaces and fragmentation; on each GPU."""

RAM_RESERVE = 1 << 30
"""The services' Python processes and the rest of the machine."""

GPU_PART_TOKENS = 2048
"""Tokens of a context whose keys and values a GPU expands at a time."""
