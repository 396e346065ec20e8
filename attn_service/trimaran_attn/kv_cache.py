"""The paged latent cache: one vector of latent and rotated key per token and layer (arXiv 2405.04434)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import trimaran_kernels
from torch import Tensor
from trimaran.kv_format import KvFormat, entry_bytes
from trimaran.spec import ModelSpec

from trimaran_attn import kv_codes
from trimaran_attn.placement import Placement

PAGE_SIZE = 64
"""Tokens per page."""


class LatentCache:
    """Pages of all layers; who holds which page is the allocator's business.

    A page has the same number in all layers, wherever these are.

    Args:
        spec: dimensions.
        n_pages: pages, of `PAGE_SIZE` tokens each.
        where: the layers are; one tensor on each device.
        kind: how entries are stored.
    """

    def __init__(
        self, spec: ModelSpec, n_pages: int, where: torch.device | Placement, kind: KvFormat
    ) -> None:
        self.n_pages = n_pages
        self._spec = spec
        self.kind = kind
        self._layers: list[Tensor] = []
        for stage in Placement.on(where, spec.n_layers).stages:
            # Memory of a CPU is only taken when a page is first written.
            shape = (len(stage.layers), n_pages, PAGE_SIZE, entry_bytes(spec, kind))
            self._layers += torch.empty(shape, device=stage.device, dtype=torch.uint8).unbind()
        self._native: dict[int, trimaran_kernels.LatentPages] = {}

    def write(self, layer: int, slots: Tensor, entries: Tensor) -> None:
        """Store entries [T, latent + rope] at `slots` [T] (page × page size + offset) of a layer."""
        raw = kv_codes.encode(entries, self._spec, self.kind)
        self._layers[layer].flatten(0, 1).index_copy_(0, slots, raw)

    def read(self, layer: int, pages: Sequence[int], n_tokens: int) -> Tensor:
        """The first entries of a request, [n_tokens, latent + rope], float32 or bfloat16, for the reference.

        A view if its pages are consecutive and nothing is to be decoded.
        """
        layer_pages = self._layers[layer]
        first, last = pages[0], pages[0] + len(pages)
        if list(pages) == list(range(first, last)):
            chosen = layer_pages[first:last]
        else:
            chosen = layer_pages[torch.tensor(pages, device=layer_pages.device)]
        return kv_codes.decode(chosen.flatten(0, 1)[:n_tokens], self._spec, self.kind)

    def layer_bytes(self, layer: int) -> Tensor:
        """A layer as it is stored: uint8 [pages, page size, entry bytes]."""
        return self._layers[layer]

    def native(self, layer: int) -> trimaran_kernels.LatentPages:
        """A layer of a cache in CPU memory, for the kernels: they read and write it in place."""
        if layer not in self._native:
            self._native[layer] = trimaran_kernels.LatentPages(
                self._layers[layer].flatten().numpy(),
                self.kind,
                self._spec.kv_lora_rank,
                self._spec.qk_rope_head_dim,
                PAGE_SIZE,
            )
        return self._native[layer]


def page_bytes(spec: ModelSpec, kind: KvFormat, n_layers: int | None = None) -> int:
    """Bytes of one page over so many layers; None: all."""
    count = spec.n_layers if n_layers is None else n_layers
    return count * PAGE_SIZE * entry_bytes(spec, kind)
