"""Token vectors, read from the quantised table row by row."""

from __future__ import annotations

import torch
from torch import Tensor

from trimaran_attn.registry import Site
from trimaran_attn.weights import QuantTensor


class Embedding:
    """Looks rows up in the mapped file: the table is never expanded, and needs no memory of the device."""

    def __init__(self, table: QuantTensor, device: torch.device, dtype: torch.dtype) -> None:
        self._table = table
        self._device = device
        self._dtype = dtype

    def __call__(self, token_ids: Tensor) -> Tensor:
        """token_ids: [T] int64 → [T, hidden]."""
        return self.look_up(token_ids.cpu()).to(self._device, self._dtype)

    def look_up(self, token_ids: Tensor) -> Tensor:
        """token_ids: [T] int64 on the CPU → [T, hidden] float32 on the CPU."""
        return self._table.rows(token_ids.numpy())


def build_embedding(site: Site) -> Embedding:
    """Shape: [vocab, hidden]."""
    return Embedding(site.weights.quantised(site.path, site.shape), site.device, site.dtype)
