"""Random samples turned into groups of right-padded rows of similar length."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from random import Random

import torch
from tokenizers import Tokenizer
from torch import Tensor

from .samples import Sample
from .tasks import draw
from .tokenizer import encode_sample

PAD_ID = 2
ROW_LIMITS = (40, 64, 96, 144, 224, 352, 608, 1500)  # a group holds the rows up to its limit


@dataclass(frozen=True)
class Batch:
    """Groups of token ids [rows, length]; for all tokens in order, the next token and its loss weight."""

    groups: list[Tensor]
    targets: Tensor
    weights: Tensor


Row = tuple[list[int], list[int]]  # prompt ids, completion ids


def _rectangle(rows: list[Row]) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, targets and weights of one group, each [rows, length]."""
    length = max(len(p) + len(c) for p, c in rows) - 1
    ids = torch.full((len(rows), length + 1), PAD_ID)
    weights = torch.zeros(len(rows), length)
    for i, (prompt, completion) in enumerate(rows):
        end = len(prompt) + len(completion)
        ids[i, :end] = torch.tensor(prompt + completion)
        weights[i, len(prompt) - 1 : end - 1] = 1.0
    return ids[:, :-1].contiguous(), ids[:, 1:], weights


def group_rows(rows: Iterable[Row]) -> Batch:
    """A batch of these rows, grouped by length so that little is padding."""
    ordered = sorted(rows, key=lambda row: len(row[0]) + len(row[1]))
    buckets: dict[int, list[Row]] = {}
    for row in ordered:
        limit = next(n for n in ROW_LIMITS if len(row[0]) + len(row[1]) <= n)
        buckets.setdefault(limit, []).append(row)
    parts = [_rectangle(bucket) for bucket in buckets.values()]
    return Batch(
        [ids for ids, _, _ in parts],
        torch.cat([targets.flatten() for _, targets, _ in parts]),
        torch.cat([weights.flatten() for _, _, weights in parts]),
    )


def random_batch(rng: Random, tokenizer: Tokenizer, progress: float, tokens: int) -> Batch:
    """Samples of the mix at `progress`, about `tokens` tokens in all."""
    rows: list[Row] = []
    total = 0
    while total < tokens:
        row = encode_sample(tokenizer, draw(rng, progress))
        size = len(row[0]) + len(row[1])
        if size <= ROW_LIMITS[-1]:
            rows.append(row)
            total += size
    return group_rows(rows)


def batches_of(samples: list[Sample], tokenizer: Tokenizer) -> Batch:
    """One batch of exactly these samples."""
    return group_rows(encode_sample(tokenizer, s) for s in samples)
