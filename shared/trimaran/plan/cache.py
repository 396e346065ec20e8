"""Tokens and bytes of the latent cache."""

from __future__ import annotations

from collections.abc import Callable

from trimaran.config import AttnConfig
from trimaran.plan.sizes import PAGE_TOKENS, SMALLEST_CONTEXT
from trimaran.units import parse_bytes


def choose_context(config: AttnConfig, wanted: int, fits: Callable[[int], bool]) -> int:
    """Tokens to plan for: those asked for, or, when nobody asked, as many of the model's as fit.

    Args:
        config: `context_length`.
        wanted: what it or the model says.
        fits: whether so many tokens do.
    """
    if config.context_length is not None:
        return wanted
    least = min(wanted, SMALLEST_CONTEXT)
    context = wanted
    while context > least and not fits(context):
        context = max(least, context // 2)
    return context


def cache_bytes(config: AttnConfig, context: int, kv_per_token: int) -> int:
    """Bytes of the cache: as configured, or one full context."""
    pages = -(-context // PAGE_TOKENS)
    needed = pages * PAGE_TOKENS * kv_per_token
    return needed if config.kv_memory == "auto" else max(needed, parse_bytes(config.kv_memory))
