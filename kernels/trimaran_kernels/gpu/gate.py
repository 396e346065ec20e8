"""A mixture-of-experts layer's gate in two launches: scores' logits, then the whole choice for each token.

arXiv 2405.04434 §2.1.2: softmax, and a group is as good as its best expert. arXiv 2412.19437 §2.1.2: sigmoid,
a bias that takes part in the choice alone, and a group is as good as its best two.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import linear

ROUTED_TOKENS = 64
"""Up to so many tokens a kernel multiplies by the router; beyond, torch does."""

_TOKENS, _STEP = 4, 1024


class GateRule(NamedTuple):
    """How experts are chosen; a compile-time constant.

    Attributes:
        n_experts, top_k: how many there are, and are chosen.
        softmax: whether scores are a softmax; else each is a sigmoid.
        n_groups, n_groups_used: groups of consecutive experts, and how many of them may be chosen from.
        group_best: a group's score is the sum of so many of its best, 1 or 2.
        normalise: whether weights are divided by their sum.
        weights_scale: on the weights.
    """

    n_experts: int
    top_k: int
    softmax: bool
    n_groups: int
    n_groups_used: int
    group_best: int
    normalise: bool
    weights_scale: float


@triton.jit(do_not_specialize=["n_tokens"])
def router_kernel(x, weight, logits, n_tokens, width, n_experts, TOKENS: tl.constexpr, STEP: tl.constexpr):
    """logits[t, e] = Σ x[t, k] · weight[e, k] in float32, for one expert and TOKENS tokens."""
    expert = tl.program_id(0)
    tokens = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    there = (tokens < n_tokens)[:, None]
    rows = x + tokens.to(tl.int64)[:, None] * width
    total = tl.zeros([TOKENS, STEP], tl.float32)
    for start in range(0, width, STEP):
        k = start + tl.arange(0, STEP)
        inside = k < width
        w = tl.load(weight + expert.to(tl.int64) * width + k, mask=inside, other=0.0)
        values = tl.load(rows + k[None, :], mask=there & inside[None, :], other=0.0)
        total += values.to(tl.float32) * w[None, :]
    tl.store(logits + tokens * n_experts + expert, tl.sum(total, 1), mask=tokens < n_tokens)


@triton.jit
def choose_kernel(
    logits, bias, ids, weights, R: tl.constexpr, BIAS: tl.constexpr, GROUPS: tl.constexpr, SIZE: tl.constexpr
):
    """One token: its experts in the order of their rank, equal ones in the order of their ids.

    Experts lie in a tile [GROUPS, SIZE], both padded to powers of two.
    """
    row = tl.program_id(0).to(tl.int64)
    size: tl.constexpr = R.n_experts // R.n_groups
    group = tl.arange(0, GROUPS)
    member = tl.arange(0, SIZE)
    there = (group < R.n_groups)[:, None] & (member < size)[None, :]
    expert = group[:, None] * size + member[None, :]
    values = tl.load(logits + row * R.n_experts + expert, mask=there, other=float("-inf"))
    if R.softmax:
        powers = tl.exp(values - tl.max(tl.max(values, 1), 0))
        scores = powers / tl.sum(tl.sum(powers, 1), 0)
    else:
        scores = 1.0 / (1.0 + tl.exp(-values))
    ranking = scores
    if BIAS:
        ranking += tl.load(bias + expert, mask=there, other=0.0)
    # Places apart, worst last: real ranks, ranks that are no number, experts of lost groups, none at all.
    ranking = tl.where(tl.abs(ranking) < 1e37, ranking, -1e38)
    ranking = tl.where(there, ranking, float("-inf"))
    if R.n_groups > R.n_groups_used:
        kept = _best_groups(ranking, R, GROUPS, SIZE)
        ranking = tl.where(there & (kept == 0)[:, None], -2e38, ranking)
    flat = tl.reshape(ranking, [GROUPS * SIZE])
    flat_scores = tl.reshape(scores, [GROUPS * SIZE])
    place = tl.arange(0, GROUPS * SIZE)
    k = tl.arange(0, triton.next_power_of_2(R.top_k))
    chosen = tl.zeros_like(k)
    shares = tl.zeros(k.shape, tl.float32)
    top_k: tl.constexpr = R.top_k
    for n in tl.static_range(top_k):
        best = tl.argmax(flat, 0, tie_break_left=True)
        share = tl.sum(tl.where(place == best, flat_scores, 0.0), 0)
        chosen = tl.where(k == n, best // SIZE * size + best % SIZE, chosen)
        shares = tl.where(k == n, share, shares)
        flat = tl.where(place == best, float("-inf"), flat)
    if R.normalise:
        shares = shares / (tl.sum(shares, 0) + 1e-20)
    tl.store(ids + row * R.top_k + k, chosen, mask=k < R.top_k)
    tl.store(weights + row * R.top_k + k, shares * R.weights_scale, mask=k < R.top_k)


@triton.jit
def _best_groups(ranking, R: tl.constexpr, GROUPS: tl.constexpr, SIZE: tl.constexpr):
    """[GROUPS] int32: 1 for the groups that may be chosen from."""
    group = tl.arange(0, GROUPS)
    size: tl.constexpr = R.n_experts // R.n_groups
    best = tl.max(ranking, 1)
    if R.group_best == 2 and size > 1:
        first = tl.argmax(ranking, 1, tie_break_left=True)
        others = tl.where(tl.arange(0, SIZE)[None, :] == first[:, None], float("-inf"), ranking)
        best += tl.max(others, 1)
    best = tl.where(group < R.n_groups, tl.maximum(best, -3e38), float("-inf"))
    kept = tl.zeros_like(group)
    used: tl.constexpr = R.n_groups_used
    for _ in tl.static_range(used):
        winner = tl.argmax(best, 0, tie_break_left=True)
        kept = tl.where(group == winner, 1, kept)
        best = tl.where(group == winner, float("-inf"), best)
    return kept


def route(x: Tensor, weight: Tensor, bias: Tensor | None, rule: GateRule) -> tuple[Tensor, Tensor]:
    """Choose experts for tokens, all in float32.

    Args:
        x: [T, hidden], contiguous.
        weight: [experts, hidden] float32.
        bias: [experts] float32; it takes part in the choice, not in the weights.
        rule: how.

    Returns:
        Ids [T, top_k] int32, by rank, equal ranks by id; weights [T, top_k] float32. A token with NaN gets
        NaN weights, and ids that exist and differ.
    """
    n_tokens = len(x)
    logits = route_logits(x, weight)
    ids = torch.empty(n_tokens, rule.top_k, dtype=torch.int32, device=x.device)
    weights = torch.empty(n_tokens, rule.top_k, dtype=torch.float32, device=x.device)
    if n_tokens:
        choose_kernel[(n_tokens,)](
            logits,
            logits if bias is None else bias,
            ids,
            weights,
            R=rule,
            BIAS=bias is not None,
            GROUPS=triton.next_power_of_2(rule.n_groups),
            SIZE=triton.next_power_of_2(rule.n_experts // rule.n_groups),
            num_warps=1,
        )
    return ids, weights


def route_logits(x: Tensor, weight: Tensor) -> Tensor:
    """x·weightᵀ [T, experts] float32; arguments as of `route`."""
    (n_tokens, width), n_experts = x.shape, len(weight)
    if not 0 < n_tokens <= ROUTED_TOKENS:
        return linear(x.float(), weight)
    logits = torch.empty(n_tokens, n_experts, dtype=torch.float32, device=x.device)
    tokens = min(_TOKENS, triton.next_power_of_2(n_tokens))
    router_kernel[(n_experts, triton.cdiv(n_tokens, tokens))](
        x, weight, logits, n_tokens, width, n_experts, TOKENS=tokens, STEP=_STEP, num_warps=4
    )
    return logits
