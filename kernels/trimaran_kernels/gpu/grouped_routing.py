"""Which tokens meet which resident expert, worked out on the device in tensors of fixed shapes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Routing(NamedTuple):
    """The places (token, choice) of a batch in the order of the slots that compute them.

    A block is a run of at most `tile` of one slot's places. Shapes depend on the batch's and the stack's
    sizes alone, and nothing waits for the device: a CUDA graph may capture the making of it.

    Attributes:
        order: [T · top_k] int64, places by slot, within a slot ascending; those without a slot come last.
        block_slot: [blocks] int32, the slot of each block; -1 for blocks that a batch does not need.
        block_first, block_end: [blocks] int32, its range in `order`.
    """

    order: Tensor
    block_slot: Tensor
    block_first: Tensor
    block_end: Tensor


def slots_of(ids: Tensor, slots: Tensor) -> Tensor:
    """The slot of each place, -1 if no slot computes it.

    Args:
        ids: int32 [T, top_k] experts; -1 skips a place.
        slots: int32 [experts], the slot of each expert or -1.
    """
    return torch.where(ids < 0, -1, slots[ids.clamp(min=0)])


def route(ids: Tensor, slots: Tensor, n_slots: int, tile: int) -> Routing:
    """Sort a batch's places by slot and cut them into blocks; ids and slots as in `slots_of`."""
    slot = slots_of(ids, slots).flatten()
    keys, order = torch.where(slot < 0, n_slots, slot).sort(stable=True)
    borders = torch.arange(n_slots + 1, dtype=keys.dtype, device=keys.device)
    starts = torch.searchsorted(keys, borders)
    n_blocks = (starts.diff() + (tile - 1)) // tile
    ends = n_blocks.cumsum(0)
    # Enough for any batch: each slot has at most one block that is not full.
    most = slot.numel() // tile + min(n_slots, slot.numel())
    block = torch.arange(most, device=keys.device)
    owner = torch.searchsorted(ends, block, right=True)
    used, owner = owner < n_slots, owner.clamp(max=n_slots - 1)
    first = starts[owner] + (block - ends[owner] + n_blocks[owner]) * tile
    end = torch.minimum(first + tile, starts[owner + 1])
    return Routing(order, torch.where(used, owner, -1).int(), first.int(), end.int())
