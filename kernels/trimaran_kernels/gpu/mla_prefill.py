"""Causal attention of a chunk of one request's tokens over expanded keys and values, in parts of the context.

Expanding costs a multiplication per visible token but makes scores 3.4 times cheaper than the absorbed form
(arXiv 2405.04434 §2.1), so it pays for long chunks. A whole context of expanded keys would take gigabytes:
the caller expands parts, and the running softmax goes on from one part to the next.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from trimaran_kernels.gpu.mla_decode import LOG2_E

QUERIES, KEYS = 64, 64


@triton.jit
def part_kernel(
    q_nope,
    q_rope,
    k_nope,
    k_rope,
    values,
    mixed,
    sizes,
    scale,
    n_queries,
    n_keys,
    n_heads,
    last_seen,
    q_nope_stride,
    q_rope_stride,
    value_head_stride,
    NOPE: tl.constexpr,
    ROPE: tl.constexpr,
    VALUE: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    CONTINUED: tl.constexpr,
):
    """Go on with mixed[query, head] and its log2-sum-exp2; query i sees a part's keys up to last_seen + i."""
    head = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    exists = (rows < n_queries)[:, None]
    d = tl.arange(0, NOPE)
    r = tl.arange(0, ROPE)
    e = tl.arange(0, VALUE)
    wide = rows.to(tl.int64)[:, None]
    query = wide * n_heads + head
    a = tl.load(q_nope + query * q_nope_stride + d[None, :], mask=exists, other=0.0)
    b = tl.load(q_rope + query * q_rope_stride + r[None, :], mask=exists, other=0.0)
    state = sizes + rows.to(tl.int64) * n_heads + head
    target = mixed + (wide * n_heads + head) * VALUE + e[None, :]
    largest = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    sums = tl.zeros([QUERIES, VALUE], tl.float32)
    if CONTINUED:
        largest = tl.load(state, mask=rows < n_queries, other=0.0)
        total += 1.0
        sums = tl.load(target, mask=exists, other=0.0)
    # Keys behind what the block's last query sees would change nothing.
    end = min(n_keys, last_seen + (tl.program_id(0) + 1) * QUERIES)
    for start in range(0, end, KEYS):
        t = start + tl.arange(0, KEYS)
        there = (t < n_keys)[:, None]
        at = t.to(tl.int64)[:, None]
        k = tl.load(k_nope + (at * n_heads + head) * NOPE + d[None, :], mask=there, other=0.0)
        p = tl.load(k_rope + at * ROPE + r[None, :], mask=there, other=0.0)
        v = tl.load(values + head * value_head_stride + at * VALUE + e[None, :], mask=there, other=0.0)
        scores = tl.dot(a, tl.trans(k), input_precision="ieee")
        scores = tl.dot(b, tl.trans(p), scores, input_precision="ieee") * scale
        seen = (t[None, :] <= last_seen + rows[:, None]) & (t < n_keys)[None, :]
        scores = tl.where(seen, scores, float("-inf"))
        larger = tl.maximum(largest, tl.max(scores, 1))
        # A query may see nothing of a part: then both are -inf, and their difference would be no number.
        base = tl.where(larger == float("-inf"), 0.0, larger)
        weights = tl.exp2(scores - base[:, None])
        shrink = tl.exp2(largest - base)
        total = total * shrink + tl.sum(weights, 1)
        sums = tl.dot(weights.to(v.dtype), v, sums * shrink[:, None], input_precision="ieee")
        largest = larger
    filled = total > 0
    tl.store(state, tl.where(filled, largest + tl.log2(total), float("-inf")), mask=rows < n_queries)
    tl.store(target, sums / tl.where(filled, total, 1.0)[:, None], mask=exists)


class ChunkAttention:
    """The running softmax of one chunk.

    Args:
        q_nope, q_rope: [n, H, nope] and [n, H, rope]; heads lie one after the other, their values together.
        value_dim: size of a value.
        position: of the first query.
        scale: on the scores.
    """

    def __init__(self, q_nope: Tensor, q_rope: Tensor, value_dim: int, position: int, scale: float) -> None:
        n, heads, _ = q_nope.shape
        assert q_nope.stride(0) == heads * q_nope.stride(1), "heads must lie one after the other"
        assert q_rope.stride(0) == heads * q_rope.stride(1), "heads must lie one after the other"
        self._queries = (q_nope, q_rope)
        self._position = position
        self._scale = scale
        self._seen = 0
        self._mixed = q_nope.new_empty(n, heads, value_dim, dtype=torch.float32)
        self._sizes = q_nope.new_empty(n, heads, dtype=torch.float32)

    def add(self, k_nope: Tensor, k_rope: Tensor, values: Tensor) -> None:
        """Attend to the next L tokens of the context.

        Args:
            k_nope: [L, H, nope], contiguous.
            k_rope: [L, rope], contiguous.
            values: [H, L, v], contiguous.
        """
        q_nope, q_rope = self._queries
        n, heads, nope = q_nope.shape
        part_kernel[(triton.cdiv(n, QUERIES), heads)](
            q_nope,
            q_rope,
            k_nope,
            k_rope,
            values,
            self._mixed,
            self._sizes,
            self._scale * LOG2_E,
            n,
            len(k_nope),
            heads,
            self._position - self._seen,
            q_nope.stride(1),
            q_rope.stride(1),
            values.stride(0),
            NOPE=nope,
            ROPE=q_rope.shape[-1],
            VALUE=values.shape[-1],
            QUERIES=QUERIES,
            KEYS=KEYS,
            CONTINUED=self._seen > 0,
            num_warps=4,
            num_stages=2,
        )
        self._seen += len(k_nope)

    def result(self) -> Tensor:
        """Values [n, H, v] in the queries' type, once every visible token was added."""
        return self._mixed.to(self._queries[0].dtype)
