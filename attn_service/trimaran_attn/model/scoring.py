"""How likely the model finds tokens that are given: log probabilities of a prompt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

ROWS_AT_ONCE = 32
"""A prompt's logits would not fit: 16 MiB of float32 exist at a time with a vocabulary of 129,280."""


@dataclass(frozen=True)
class Scored:
    """Rows of a batch whose following tokens are known and are to be scored.

    Attributes:
        rows: of the batch.
        targets: [n] int64, the token that follows each.
        n_top: how many of the most likely tokens are wanted beside.
    """

    rows: slice
    targets: Tensor
    n_top: int


@dataclass(frozen=True)
class Scores:
    """Natural-log probabilities: of the targets [n] and of the most likely tokens [n, n_top]."""

    logprobs: Tensor
    top_logprobs: Tensor
    top_ids: Tensor


def score(logits_of: Callable[[Tensor], Tensor], hidden: Tensor, scored: Scored) -> Scores:
    """Score the rows, a few at a time.

    Args:
        logits_of: hidden vectors [n, hidden] to logits [n, vocab] float32.
        hidden: [T, hidden] of the whole batch.
        scored: which rows.
    """
    rows = torch.split(hidden[scored.rows], ROWS_AT_ONCE)
    targets = torch.split(scored.targets, ROWS_AT_ONCE)
    parts = [_score(logits_of(x), ids, scored.n_top) for x, ids in zip(rows, targets, strict=True)]
    return Scores(*(torch.cat(kind) for kind in zip(*parts, strict=True)))


def _score(logits: Tensor, targets: Tensor, n_top: int) -> tuple[Tensor, Tensor, Tensor]:
    logprobs = logits.log_softmax(-1)
    top_logprobs, top_ids = logprobs.topk(n_top, -1)
    return logprobs.gather(-1, targets[:, None])[:, 0], top_logprobs, top_ids
