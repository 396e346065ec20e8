"""The tokens of one step: of several requests, flattened one after the other."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from trimaran_attn.model.scoring import Scored, Scores


@dataclass(frozen=True)
class Segment:
    """Consecutive tokens of one request in the batch.

    Attributes:
        rows: the batch's rows that belong to it.
        position: position of its first token in the request.
        pages: the request's pages of the cache; they cover `position` + its length.
        cut_from: the whole segment, if this is a part of it; None otherwise.
    """

    rows: slice
    position: int
    pages: tuple[int, ...]
    cut_from: Segment | None = None

    @property
    def whole(self) -> Segment:
        """What decides on the form of its attention, so that cutting it changes no bit."""
        return self.cut_from or self

    @property
    def length(self) -> int:
        """Tokens of this step."""
        return int(self.rows.stop - self.rows.start)

    @property
    def n_visible(self) -> int:
        """Tokens that its last token attends to, itself included."""
        return self.position + self.length


@dataclass(frozen=True)
class DecodeRows:
    """One token of each of R requests, in tensors alone: a forward pass over them can be replayed.

    Attributes:
        x: [R, hidden], the tokens' embeddings.
        tables: int32 [R, P], the requests' pages in order of position; what follows them does not matter.
        lengths: int32 [R], tokens that each row attends to, itself included: at least 1.
        requests: int32 [R], 0, 1, …
        longest: none of `lengths` will ever be larger.
        live: int32 [1], how many of the rows are real: the first ones. The others are padding.
    """

    x: Tensor
    tables: Tensor
    lengths: Tensor
    requests: Tensor
    longest: int
    live: Tensor


@dataclass(frozen=True)
class Batch:
    """T tokens of one step, on one device.

    Attributes:
        token_ids: [T] int64.
        positions: [T] int64, in their requests.
        slots: [T] int64, where their latents go in the cache: page × page size + offset.
        segments: which rows belong together; they cover all T rows.
        sampled_rows: [S] int64, the rows whose logits are wanted.
        scored: rows of prompts whose log probabilities are wanted.
        decode: says the same as `segments`, which is empty then, for rows that are all single tokens.
    """

    token_ids: Tensor
    positions: Tensor
    slots: Tensor
    segments: tuple[Segment, ...]
    sampled_rows: Tensor
    scored: tuple[Scored, ...] = ()
    decode: DecodeRows | None = None

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device; itself, if it is there."""
        if self.token_ids.device == device:
            return self
        assert self.decode is None, "steps over static inputs stay on one device"
        return Batch(
            self.token_ids.to(device),
            self.positions.to(device),
            self.slots.to(device),
            self.segments,
            self.sampled_rows.to(device),
            tuple(replace(scored, targets=scored.targets.to(device)) for scored in self.scored),
        )


@dataclass(frozen=True)
class Output:
    """What a step computed.

    Attributes:
        logits: [S, vocab] float32 of the batch's sampled rows.
        scores: one for each of the batch's `scored`.
    """

    logits: Tensor
    scores: tuple[Scores, ...] = ()


def split_batch(batch: Batch, count: int) -> tuple[Batch, ...]:
    """Cut a batch into at most `count` parts of about equal size, in order; a segment may be cut in two.

    Only what the layers need is split: `sampled_rows` and `scored` are empty. Rows to decode stay together.
    """
    n_tokens = len(batch.token_ids)
    count = min(count, n_tokens)
    if count <= 1 or batch.decode is not None:
        return (batch,)
    borders = [n_tokens * part // count for part in range(count + 1)]
    return tuple(_part(batch, start, stop) for start, stop in pairwise(borders))


def _part(batch: Batch, start: int, stop: int) -> Batch:
    segments = []
    for segment in batch.segments:
        first, last = max(segment.rows.start, start), min(segment.rows.stop, stop)
        if first < last:
            position = segment.position + first - segment.rows.start
            segments.append(
                Segment(slice(first - start, last - start), position, segment.pages, segment.whole)
            )
    rows = slice(start, stop)
    return Batch(
        batch.token_ids[rows],
        batch.positions[rows],
        batch.slots[rows],
        tuple(segments),
        batch.sampled_rows[:0],
    )
