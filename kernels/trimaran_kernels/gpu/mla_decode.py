"""Absorbed attention of single tokens over the paged latent cache: flash decode, split along the context.

All heads share one key, latent and rotated part, and one value, the latent (arXiv 2405.04434 §2.1), so a
program takes a block of heads of one token and reads each entry once for all of them. Splits are merged by
their log-sum-exp. How many splits are launched depends on the batch's size and the longest context there
could be; how long they are on each row's own length, read on the device. So a launch can be replayed with
other lengths, and a row's result does not depend on its batch-mates' lengths.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from trimaran_kernels.gpu.latents import PLAIN, Entry, LayerViews, load_keys, load_latents
from trimaran_kernels.gpu.target import has_large_shared_memory, keeps_wide_tiles

PROGRAMS = 264
"""Splits are made until there are about so many programs: two for each multiprocessor of a large GPU."""

LOG2_E = 1.4426950408889634


@dataclass(frozen=True)
class Block:
    """What a program does at a time: `heads` queries × `tokens` entries."""

    heads: int
    tokens: int
    warps: int
    stages: int


LEAST_STEPS = tl.constexpr(4)
"""Steps of a program that a split is worth."""


@triton.jit
def _split_length(length, n_splits, TOKENS: tl.constexpr):
    """Entries per split, a multiple of a program's step: all splits are used, unless they got too short."""
    return tl.maximum(tl.cdiv(tl.cdiv(length, n_splits), TOKENS), LEAST_STEPS) * TOKENS


@triton.jit
def split_kernel(
    queries,
    layer,
    tables,
    requests,
    lengths,
    partial,
    maxima,
    scale,
    n_heads,
    table_stride,
    E: tl.constexpr,
    HEADS: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """partial[row, split, head] = softmax-weighted latents of the split; maxima: their log2-sum-exp2."""
    row = tl.program_id(0)
    split = tl.program_id(2)
    heads = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    exists = (heads < n_heads)[:, None]
    latent: tl.constexpr = E.latent
    i = tl.arange(0, latent)
    j = tl.arange(0, E.rope)
    width: tl.constexpr = E.latent + E.rope
    q = queries + (row.to(tl.int64) * n_heads + heads)[:, None] * width
    q_latent = tl.load(q + i[None, :], mask=exists, other=0.0)
    q_key = tl.load(q + E.latent + j[None, :], mask=exists, other=0.0)
    table = tables + tl.load(requests + row).to(tl.int64) * table_stride
    length = tl.load(lengths + row)
    per_split = _split_length(length, tl.num_programs(2), TOKENS)
    first = split * per_split
    last = min(first + per_split, length)
    largest = tl.full([HEADS], float("-inf"), tl.float32)
    total = tl.zeros([HEADS], tl.float32)
    mixed = tl.zeros([HEADS, latent], tl.float32)
    for start in range(first, last, TOKENS):
        t = start + tl.arange(0, TOKENS)
        there = t < last
        slots = tl.load(table + t // E.page, mask=there, other=0).to(tl.int64) * E.page + t % E.page
        latents = load_latents(layer, slots, there, E).to(q_latent.dtype)
        keys = load_keys(layer, slots, there, E).to(q_latent.dtype)
        scores = tl.dot(q_latent, tl.trans(latents), input_precision="ieee")
        scores = tl.dot(q_key, tl.trans(keys), scores, input_precision="ieee") * scale
        scores = tl.where(there[None, :], scores, float("-inf"))
        larger = tl.maximum(largest, tl.max(scores, 1))
        weights = tl.exp2(scores - larger[:, None])
        shrink = tl.exp2(largest - larger)
        total = total * shrink + tl.sum(weights, 1)
        mixed = tl.dot(weights.to(latents.dtype), latents, mixed * shrink[:, None], input_precision="ieee")
        largest = larger
    target = (row.to(tl.int64) * tl.num_programs(2) + split) * n_heads + heads
    written = heads < tl.where(first < last, n_heads, 0)  # splits beyond the row's end are not looked at
    size = tl.where(total > 0, largest + tl.log2(total), float("-inf"))
    tl.store(maxima + target, size, mask=written)
    mixed = mixed / tl.where(total > 0, total, 1.0)[:, None]
    tl.store(partial + target[:, None] * E.latent + i[None, :], mixed, mask=written[:, None])


@triton.jit
def merge_kernel(
    partial,
    maxima,
    lengths,
    out,
    n_heads,
    n_splits,
    LATENT: tl.constexpr,
    SPLITS: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """out[row, head] = mean of partial[row, :, head], weighted by exp2 of their maxima."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    length = tl.load(lengths + row)
    used = tl.cdiv(length, _split_length(length, n_splits, TOKENS))
    i = tl.arange(0, LATENT)
    s = tl.arange(0, SPLITS)
    at = (row * n_splits + s) * n_heads + head
    sizes = tl.load(maxima + at, mask=s < used, other=float("-inf"))
    weights = tl.exp2(sizes - tl.max(sizes, 0))
    weights = weights / tl.sum(weights, 0)
    total = tl.zeros([LATENT], tl.float32)
    for split in range(used):
        mine = tl.sum(tl.where(s == split, weights, 0.0), 0)
        total += mine * tl.load(partial + ((row * n_splits + split) * n_heads + head) * LATENT + i)
    tl.store(out + (row * n_heads + head) * LATENT + i, total.to(out.dtype.element_ty))


def decode_attention(
    queries: Tensor,
    layer: LayerViews,
    entry: Entry,
    tables: Tensor,
    requests: Tensor,
    lengths: Tensor,
    *,
    longest: int,
    scale: float,
) -> Tensor:
    """Absorbed attention of T tokens.

    Args:
        queries: [T, H, latent + rope], absorbed and rotated, contiguous.
        layer: views of one layer of the cache.
        entry: its layout; latent and rope are powers of two from 16 on.
        tables: int32 [R, P], pages of each request in order of position.
        requests: int32 [T], the request of each token.
        lengths: int32 [T], how many entries each token sees, itself included: at least 1.
        longest: none of `lengths` is larger. With T it decides how many splits there are, and by that on the
            order of additions.
        scale: on the scores.

    Returns:
        Mixed latents [T, H, latent] in the queries' type.
    """
    n_rows, n_heads, _ = queries.shape
    block = choose_block(n_heads, entry)
    head_blocks = triton.cdiv(n_heads, block.heads)
    n_splits = count_splits(longest, n_rows * head_blocks, block.tokens)
    partial = queries.new_empty(n_rows, n_splits, n_heads, entry.latent, dtype=torch.float32)
    maxima = queries.new_empty(n_rows, n_splits, n_heads, dtype=torch.float32)
    split_kernel[(n_rows, head_blocks, n_splits)](
        queries,
        layer,
        tables,
        requests,
        lengths,
        partial,
        maxima,
        scale * LOG2_E,
        n_heads,
        tables.stride(0),
        E=entry,
        HEADS=block.heads,
        TOKENS=block.tokens,
        num_warps=block.warps,
        num_stages=block.stages,
    )
    out = queries.new_empty(n_rows, n_heads, entry.latent)
    merge_kernel[(n_rows, n_heads)](
        partial,
        maxima,
        lengths,
        out,
        n_heads,
        n_splits,
        LATENT=entry.latent,
        SPLITS=triton.next_power_of_2(n_splits),
        TOKENS=block.tokens,
        num_warps=4,
    )
    return out


def choose_block(n_heads: int, entry: Entry) -> Block:
    """As many heads as share an entry well and as many entries as fit, without spilling registers."""
    if not has_large_shared_memory():
        return Block(heads=16, tokens=32, warps=4 if entry.form == PLAIN else 8, stages=1)
    if n_heads <= 32 or not keeps_wide_tiles():
        return Block(16 if n_heads <= 16 else 32, tokens=32, warps=8, stages=2)
    return Block(64, tokens=64 if entry.form == PLAIN else 32, warps=8, stages=2)


def count_splits(longest: int, programs: int, tokens: int) -> int:
    """Splits of a context: enough to fill a GPU, none too short."""
    most = triton.cdiv(longest, LEAST_STEPS.value * tokens)
    return int(max(1, min(triton.cdiv(PROGRAMS, programs), most)))
