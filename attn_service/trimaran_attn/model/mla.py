"""The arithmetic of multi-head latent attention for the tokens of one request (arXiv 2405.04434 §2.1).

H heads, n queries, L visible tokens. Per head a key is [k_b·latent | rotated key], a value v_b·latent: either

naive      expand the L latents into keys and values of all heads: a cost per visible token, little per pair;
absorbed   push k_b into the query and v_b behind the softmax: nothing to expand, more per pair. All heads
           then share one key of latent + rope, and one value, the latent.

Both give the same up to the order of float additions; `absorbs` counts which costs less. This is the
reference; on a CPU the kernels of `native_attention` compute the same from the pages themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from trimaran.spec import ModelSpec

MlaForm = Literal["auto", "naive", "absorbed"]

# Scores of so many (head, query, key) triples exist at a time: 32 MiB of float32.
MAX_SCORES = 1 << 23


@dataclass(frozen=True)
class LatentMaps:
    """The two halves of Wkv_b, expanded, per head.

    Attributes:
        k_b: [H, nope, latent], latent → the part of the key without position.
        v_b: [H, latent, v], latent → value.
    """

    k_b: Tensor
    v_b: Tensor

    @property
    def n_heads(self) -> int:
        """H."""
        return len(self.k_b)


def absorb(q_nope: Tensor, maps: LatentMaps) -> Tensor:
    """Queries [n, H, nope] against latents instead of keys: [n, H, latent]."""
    return torch.bmm(q_nope.transpose(0, 1), maps.k_b).transpose(0, 1)


def unabsorb(mixed: Tensor, maps: LatentMaps) -> Tensor:
    """Mixed latents [n, H, latent] to values [n, H, v]."""
    return torch.bmm(mixed.transpose(0, 1), maps.v_b).transpose(0, 1)


def attend_latents(queries: Tensor, entries: Tensor, latent: int, *, position: int, scale: float) -> Tensor:
    """Absorbed attention.

    Args:
        queries: [n, H, latent + rope], from `absorb` and the rotated part.
        entries: [L, latent + rope] of the cache; query i sees the first position + i + 1.
        latent: how much of an entry is the latent.
        position: position of the first query.
        scale: on the scores.

    Returns:
        Mixed latents [n, H, latent].
    """
    n, heads, width = queries.shape
    mixed = queries.new_empty(n, heads, latent)
    for block in _query_blocks(n, heads * len(entries)):
        visible = position + block.stop
        keys = entries[:visible]
        scores = queries[block].reshape(-1, width) @ keys.T
        weights = _weights(scores.view(-1, heads, visible).transpose(0, 1), position + block.start, scale)
        weights = weights.transpose(0, 1).reshape(-1, visible).to(keys.dtype)
        mixed[block] = (weights @ keys[:, :latent]).view(-1, heads, latent)
    return mixed


def attend_padded(queries: Tensor, entries: Tensor, lengths: Tensor, latent: int, scale: float) -> Tensor:
    """Absorbed attention of one token for each of R requests.

    Args:
        queries: [R, H, latent + rope].
        entries: [R, L, latent + rope]; what lies behind a row's length may be anything.
        lengths: int32 [R], 1 to L.
        latent: how much of an entry is the latent.
        scale: on the scores.

    Returns:
        Mixed latents [R, H, latent].
    """
    seen = torch.arange(entries.shape[1], device=entries.device) < lengths[:, None]
    entries = torch.where(seen[..., None], entries, 0.0)
    scores = torch.bmm(queries, entries.transpose(1, 2)).float() * scale
    weights = torch.where(seen[:, None], scores, -torch.inf).softmax(-1).to(entries.dtype)
    return torch.bmm(weights, entries[..., :latent])


def attend_expanded(
    queries: tuple[Tensor, Tensor], entries: Tensor, maps: LatentMaps, *, position: int, scale: float
) -> Tensor:
    """Naive attention.

    Args:
        queries: without position [n, H, nope], and rotated [n, H, rope].
        entries, position, scale: as in `attend_latents`.
        maps: expand the latents.

    Returns:
        Values [n, H, v].
    """
    q_nope, q_rope = queries
    latent = maps.k_b.shape[-1]
    latents, k_rope = entries[:, :latent], entries[:, latent:]
    keys = torch.matmul(maps.k_b, latents.T)  # [H, nope, L]
    values = torch.matmul(latents, maps.v_b)  # [H, L, v]
    n, heads, _ = q_nope.shape
    out = q_nope.new_empty(n, heads, values.shape[-1])
    for block in _query_blocks(n, heads * len(entries)):
        visible = position + block.stop
        scores = torch.bmm(q_nope[block].transpose(0, 1), keys[:, :, :visible])
        scores += torch.matmul(q_rope[block].transpose(0, 1), k_rope[:visible].T)
        weights = _weights(scores, position + block.start, scale)
        out[block] = torch.bmm(weights.to(values.dtype), values[:, :visible]).transpose(0, 1)
    return out


@dataclass(frozen=True)
class NaiveCost:
    """What the naive form's multiplications cost, where one of the absorbed form costs 1.

    Attributes:
        expand: one of expanding latents.
        pair: one of a (query, key) pair.
        queries, tokens: that are computed at least, and a multiple of: the size of a block.
    """

    expand: float = 1.0
    pair: float = 1.0
    queries: int = 1
    tokens: int = 1


EVEN = NaiveCost()
"""Both forms by the same primitives."""

TILED = NaiveCost(expand=0.115, pair=0.146, queries=32, tokens=64)
"""The naive form by AMX tiles, the absorbed one by AVX-512: counted cycles, see docs/kernels/mla-cpu.md."""


def absorbs(form: MlaForm, spec: ModelSpec, n: int, position: int, cost: NaiveCost = EVEN) -> bool:
    """Whether n queries, of which the first is at `position`, are computed in the absorbed form.

    "auto" compares what the multiplications per head of the two forms cost.
    """
    if form != "auto":
        return form == "absorbed"
    latent, rope, v = spec.kv_lora_rank, spec.qk_rope_head_dim, spec.v_head_dim
    mapping = latent * (spec.qk_nope_head_dim + v)
    absorbed = n * mapping + _pairs(n, position) * (2 * latent + rope)
    expanded = _whole(position + n, cost.tokens) * mapping
    pairs = _pairs(_whole(n, cost.queries), position)
    naive = expanded * cost.expand + pairs * (spec.qk_nope_head_dim + rope + v) * cost.pair
    return absorbed <= naive


def _pairs(n: int, position: int) -> int:
    """Of n queries, of which the first is at `position`, with the tokens that each sees."""
    return n * position + n * (n + 1) // 2


def _whole(count: int, block: int) -> int:
    """`count` rounded up to whole blocks."""
    return -(-count // block) * block


def _query_blocks(n: int, scores_per_query: int) -> list[slice]:
    """Cuts n queries so that no more than `MAX_SCORES` scores exist at a time."""
    size = max(1, MAX_SCORES // scores_per_query)
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def _weights(scores: Tensor, position: int, scale: float) -> Tensor:
    """Softmax of scores [H, n, visible] in float32, where query i sees the first position + i + 1 keys."""
    _, n, visible = scores.shape
    scores = scores.float() * scale
    if n > 1:
        seen = torch.arange(visible, device=scores.device)
        last = torch.arange(position, position + n, device=scores.device)
        scores.masked_fill_(seen > last[:, None], -torch.inf)
    return scores.softmax(-1)
