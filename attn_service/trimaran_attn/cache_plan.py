"""How large the KV cache is, and so how long a context can be."""

from __future__ import annotations

from dataclasses import dataclass

from trimaran.config import AttnConfig
from trimaran.errors import ConfigError, PlanError
from trimaran.kv_format import KvFormat
from trimaran.plan import Plan
from trimaran.spec import ModelSpec
from trimaran.units import format_bytes, parse_bytes

from trimaran_attn.kv_cache import PAGE_SIZE, page_bytes
from trimaran_attn.pages import pages_for

CPU_SHARE = 0.25
"""Of the memory that the plan leaves free; the rest is for other programs and the page cache."""

GPU_SHARE = 0.9


@dataclass(frozen=True)
class CachePlan:
    """Pages of the cache, and the longest context that a request may have, in tokens."""

    n_pages: int
    context_length: int


def plan_cache(spec: ModelSpec, config: AttnConfig, kind: KvFormat, plan: Plan) -> CachePlan:
    """Size the cache.

    Args:
        spec: the model.
        config: `context_length`, `kv_memory`, `max_running`.
        kind: how the cache stores entries.
        plan: where everything else goes.

    Raises:
        ConfigError: a longer context than the model's is asked for.
        PlanError: the memory does not hold the context that is asked for.
    """
    if (config.context_length or 0) > spec.context_length:
        raise ConfigError(
            f"attn.context_length is {config.context_length}, the model was made for {spec.context_length}",
            remedy="lower it, or leave it out",
        )
    size = page_bytes(spec, kind)
    if config.kv_memory == "auto":
        budget = _auto_pages(spec, kind, plan) * size
    else:
        budget = parse_bytes(config.kv_memory)
    context_pages = pages_for(plan.context, PAGE_SIZE)
    n_pages = min(budget // size, context_pages * config.max_running)
    required = 1 if config.context_length is None else context_pages
    if n_pages < required:
        raise PlanError(
            f"attn.kv_memory ({config.kv_memory}) gives {format_bytes(budget)} of KV cache, "
            f"{required * PAGE_SIZE} tokens need {format_bytes(required * size)}",
            remedy="raise attn.kv_memory or lower attn.context_length",
        )
    return CachePlan(n_pages, min(plan.context, n_pages * PAGE_SIZE))


def _auto_pages(spec: ModelSpec, kind: KvFormat, plan: Plan) -> int:
    """One whole context, and a share of what is left: more requests then run side by side.

    A page is on every GPU, so the one with the least room decides.
    """
    if not plan.gpus:
        share = int(max(0, plan.ram.spare) * CPU_SHARE) // plan.services_in_ram
        return (plan.kv_bytes + share) // page_bytes(spec, kind)
    return min(
        (share.kv_bytes + int(max(0, share.budget.spare) * GPU_SHARE))
        // page_bytes(spec, kind, len(share.layers))
        for share in plan.gpus
    )
