"""Multi-head latent attention on a GPU: Triton kernels over the cache's pages, and no scores in memory.

Needs Triton, so it is imported only where there is a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from trimaran.plan import GPU_PART_TOKENS
from trimaran.spec import ModelSpec
from trimaran_kernels.gpu.latents import Entry, LayerViews, describe_entry, view_layer
from trimaran_kernels.gpu.mla_decode import decode_attention
from trimaran_kernels.gpu.mla_prefill import ChunkAttention
from trimaran_kernels.gpu.rope import rotate_pairs
from trimaran_kernels.gpu.store import store_latents

from trimaran_attn.kv_cache import PAGE_SIZE
from trimaran_attn.model.attention import LatentAttention
from trimaran_attn.model.batch import DecodeRows, Segment
from trimaran_attn.model.mla import absorb, unabsorb
from trimaran_attn.model.step import Step


@dataclass(frozen=True)
class Rows:
    """Tokens whose attention is absorbed, as the kernel takes them.

    Attributes:
        index: int64 [N], their rows of the batch.
        tables: int32 [R, P], pages of their requests.
        requests, lengths: int32 [N], which table, and how many entries each sees.
        longest: of `lengths`.
    """

    index: Tensor
    tables: Tensor
    requests: Tensor
    lengths: Tensor
    longest: int


def fits_kernels(spec: ModelSpec) -> bool:
    """Whether the dimensions are powers of two, as Triton's blocks are. DeepSeek's and Kimi's all are."""
    dims = (spec.kv_lora_rank, spec.qk_rope_head_dim, spec.qk_nope_head_dim, spec.v_head_dim)
    return all(dim >= 16 and dim & (dim - 1) == 0 for dim in dims)


class GpuLatentAttention(LatentAttention):
    """The same layer as its base, which is the reference, with kernels for all between the projections."""

    def _rotate(self, q_rope: Tensor, step: Step) -> Tensor:
        return rotate_pairs(q_rope, step.cos, step.sin)

    def _store(self, x: Tensor, step: Step) -> None:
        views, entry = self._layer_of(step)
        kv = self._kv_a(x).contiguous()
        weight, eps = self._kv_norm.weight, self._kv_norm.eps
        store_latents(kv, weight, eps, step.cos, step.sin, step.batch.slots, views, entry)

    def _attend_absorbed(
        self, values: Tensor, q_nope: Tensor, q_rope: Tensor, segments: list[Segment], step: Step
    ) -> None:
        rows = step.once(("rows", self._form), lambda: _rows_of(segments, values.device))
        views, entry = self._layer_of(step)
        queries = torch.cat((absorb(q_nope[rows.index], self._maps), q_rope[rows.index]), -1)
        mixed = decode_attention(
            queries,
            views,
            entry,
            rows.tables,
            rows.requests,
            rows.lengths,
            longest=rows.longest,
            scale=self._scale,
        )
        values[rows.index] = unabsorb(mixed, self._maps)

    def _attend_rows(self, q_nope: Tensor, q_rope: Tensor, rows: DecodeRows, step: Step) -> Tensor:
        views, entry = self._layer_of(step)
        mixed = decode_attention(
            torch.cat((absorb(q_nope, self._maps), q_rope), -1),
            views,
            entry,
            rows.tables,
            rows.requests,
            rows.lengths,
            longest=rows.longest,
            scale=self._scale,
        )
        return unabsorb(mixed, self._maps)

    def _naive(self, q_nope: Tensor, q_rope: Tensor, segment: Segment, step: Step) -> Tensor:
        """Keys and values exist for a part of the context at a time."""
        k_b, v_b = self._maps.k_b, self._maps.v_b
        heads, nope, latent = k_b.shape
        attention = ChunkAttention(q_nope, q_rope, v_b.shape[-1], segment.position, self._scale)
        for start in range(0, segment.n_visible, GPU_PART_TOKENS):
            n = min(GPU_PART_TOKENS, segment.n_visible - start)
            first = start // PAGE_SIZE
            pages = segment.pages[first : first + -(-n // PAGE_SIZE)]
            entries = step.cache.read(self._layer, pages, n).to(q_nope.dtype)
            latents, keys = entries[:, :latent], entries[:, latent:].contiguous()
            k_nope = (latents @ k_b.reshape(heads * nope, latent).T).view(n, heads, nope)
            attention.add(k_nope, keys, torch.matmul(latents, v_b))
        return attention.result()

    def _layer_of(self, step: Step) -> tuple[LayerViews, Entry]:
        spec, cache = self._spec, step.cache
        views = view_layer(cache.layer_bytes(self._layer), cache.kind)
        return views, describe_entry(cache.kind, spec.kv_lora_rank, spec.qk_rope_head_dim, PAGE_SIZE)


def _rows_of(segments: list[Segment], device: torch.device) -> Rows:
    index: list[int] = []
    requests: list[int] = []
    lengths: list[int] = []
    for number, segment in enumerate(segments):
        index += range(segment.rows.start, segment.rows.stop)
        requests += [number] * segment.length
        lengths += range(segment.position + 1, segment.n_visible + 1)
    width = max(len(segment.pages) for segment in segments)
    tables = [[*segment.pages, *[0] * (width - len(segment.pages))] for segment in segments]
    return Rows(
        torch.tensor(index, device=device),
        torch.tensor(tables, dtype=torch.int32, device=device),
        torch.tensor(requests, dtype=torch.int32, device=device),
        torch.tensor(lengths, dtype=torch.int32, device=device),
        max(lengths),
    )
