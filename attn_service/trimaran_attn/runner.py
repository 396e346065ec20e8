"""From a step's plan to logits: flattens the requests' tokens, and runs the model over them."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from trimaran_attn.kv_cache import PAGE_SIZE, LatentCache
from trimaran_attn.model.batch import Batch, Segment
from trimaran_attn.scheduler import Chunk, StepPlan


class Model(Protocol):
    """What the runner needs of a model."""

    def forward(self, batch: Batch, cache: LatentCache) -> Tensor:
        """Logits [S, vocab] float32 of the batch's sampled rows."""
        ...


class Runner:
    """Computes steps.

    Args:
        model: on `device`.
        cache: its latents.
        device: where the batch's tensors go.
    """

    def __init__(self, model: Model, cache: LatentCache, device: torch.device) -> None:
        self._model = model
        self._cache = cache
        self._device = device

    def run(self, plan: StepPlan) -> Tensor:
        """Logits of the chunks that sample, in the plan's order: [S, vocab] float32 on the CPU."""
        return self._model.forward(make_batch(plan, self._device), self._cache).cpu()


def make_batch(plan: StepPlan, device: torch.device) -> Batch:
    """Flatten the chunks of a plan, one after the other."""
    token_ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    sampled_rows: list[int] = []
    segments = []
    for chunk in plan.chunks:
        stop = chunk.start + chunk.length
        rows = slice(len(token_ids), len(token_ids) + chunk.length)
        segments.append(Segment(rows, chunk.start, tuple(chunk.request.pages)))
        token_ids += chunk.request.tokens(chunk.start, stop)
        positions += range(chunk.start, stop)
        slots += _slots(chunk)
        if chunk.samples:
            sampled_rows.append(rows.stop - 1)
    return Batch(
        torch.tensor(token_ids, device=device),
        torch.tensor(positions, device=device),
        torch.tensor(slots, device=device),
        tuple(segments),
        torch.tensor(sampled_rows, dtype=torch.int64, device=device),
    )


def _slots(chunk: Chunk) -> list[int]:
    """Where the latents of a chunk's tokens go: page × page size + offset."""
    pages = chunk.request.pages
    return [
        pages[position // PAGE_SIZE] * PAGE_SIZE + position % PAGE_SIZE
        for position in range(chunk.start, chunk.start + chunk.length)
    ]
