"""The paged latent cache: one vector of latent and rotated key per token and layer (arXiv 2405.04434)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from trimaran.spec import ModelSpec

PAGE_SIZE = 64
"""Tokens per page."""


class LatentCache:
    """Pages of all layers in one tensor; who holds which page is the allocator's business.

    Args:
        spec: dimensions.
        n_pages: pages, of `PAGE_SIZE` tokens each.
        device, dtype: where the cache lies and how it is stored; readers get float32 on a CPU.
    """

    def __init__(self, spec: ModelSpec, n_pages: int, device: torch.device, dtype: torch.dtype) -> None:
        self.n_pages = n_pages
        # Memory of a CPU is only taken when a page is first written.
        self._entries = torch.empty(
            spec.n_layers, n_pages, PAGE_SIZE, entry_width(spec), device=device, dtype=dtype
        )

    def write(self, layer: int, slots: Tensor, entries: Tensor) -> None:
        """Store entries [T, width] at `slots` [T] (page × page size + offset) of a layer."""
        self._entries[layer].flatten(0, 1).index_copy_(0, slots, entries.to(self._entries.dtype))

    def read(self, layer: int, pages: Sequence[int], n_tokens: int) -> Tensor:
        """The first entries of a request, [n_tokens, width]; a view if its pages are consecutive."""
        layer_pages = self._entries[layer]
        first, last = pages[0], pages[0] + len(pages)
        if list(pages) == list(range(first, last)):
            chosen = layer_pages[first:last]
        else:
            chosen = layer_pages[torch.tensor(pages, device=layer_pages.device)]
        return chosen.flatten(0, 1)[:n_tokens]


def entry_width(spec: ModelSpec) -> int:
    """Values per token and layer: the latent and the rotated key."""
    return spec.kv_lora_rank + spec.qk_rope_head_dim


def page_bytes(spec: ModelSpec, dtype: torch.dtype) -> int:
    """Bytes of one page over all layers."""
    return spec.n_layers * PAGE_SIZE * entry_width(spec) * dtype.itemsize
