"""Multi-head latent attention over the paged cache: projections here, the arithmetic in `mla`.

This is the reference, and what runs wherever `native_attention` does not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from trimaran.spec import ModelSpec

from trimaran_attn import kv_codes
from trimaran_attn.model.batch import DecodeRows, Segment
from trimaran_attn.model.kinds import LINEAR, NORM
from trimaran_attn.model.latent_maps import expanded_maps, packed_maps
from trimaran_attn.model.linear import Linear
from trimaran_attn.model.mla import (
    LatentMaps,
    MlaForm,
    absorb,
    absorbs,
    attend_expanded,
    attend_latents,
    attend_padded,
    unabsorb,
)
from trimaran_attn.model.native_attention import NativeLatentAttention, NativeMla
from trimaran_attn.model.norm import RMSNorm
from trimaran_attn.model.query import Query, build_query
from trimaran_attn.model.rope import rotate, softmax_scale
from trimaran_attn.model.step import Step
from trimaran_attn.registry import Site


class Attention(Protocol):
    """The first half of a layer."""

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        """x: [T, hidden] → [T, hidden]; the step's latents are in the cache afterwards."""
        ...


class LatentAttention:
    """MLA of one layer.

    Args:
        spec: dimensions.
        layer: which layer of the cache it uses.
        query, kv_a, kv_norm, output: the projections.
        maps: Wkv_b, expanded.
        form: which arithmetic; "auto" takes the cheaper one for each request.
    """

    def __init__(
        self,
        *,
        spec: ModelSpec,
        layer: int,
        query: Query,
        kv_a: Linear,
        kv_norm: RMSNorm,
        maps: LatentMaps,
        output: Linear,
        form: MlaForm,
    ) -> None:
        self._spec = spec
        self._layer = layer
        self._query = query
        self._kv_a = kv_a
        self._kv_norm = kv_norm
        self._maps = maps
        self._output = output
        self._form = form
        self._scale = softmax_scale(spec.rope, spec.qk_nope_head_dim + spec.qk_rope_head_dim)

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        """x: [T, hidden] → [T, hidden]."""
        spec = self._spec
        head = [spec.qk_nope_head_dim, spec.qk_rope_head_dim]
        q_nope, q_rope = torch.split(self._query(x).view(len(x), spec.n_heads, -1), head, -1)
        q_rope = self._rotate(q_rope, step)
        self._store(x, step)
        if step.batch.decode is not None:
            return self._output(self._attend_rows(q_nope, q_rope, step.batch.decode, step).flatten(1))
        values = x.new_empty(len(x), spec.n_heads, spec.v_head_dim)
        absorbed = [segment for segment in step.batch.segments if self._absorbs(segment)]
        for segment in step.batch.segments:
            if segment not in absorbed:
                values[segment.rows] = self._naive(q_nope[segment.rows], q_rope[segment.rows], segment, step)
        if absorbed:
            self._attend_absorbed(values, q_nope, q_rope, absorbed, step)
        return self._output(values.flatten(1))

    def _attend_rows(self, q_nope: Tensor, q_rope: Tensor, rows: DecodeRows, step: Step) -> Tensor:
        """Values [R, H, v] of single tokens, absorbed; no shape depends on what the tensors hold."""
        queries = torch.cat((absorb(q_nope, self._maps), q_rope), -1)
        raw = step.cache.layer_bytes(self._layer)[rows.tables.long()].flatten(0, 2)
        entries = kv_codes.decode(raw, self._spec, step.cache.kind).to(queries.dtype)
        entries = entries.view(len(queries), -1, queries.shape[-1])
        mixed = attend_padded(queries, entries, rows.lengths, self._spec.kv_lora_rank, self._scale)
        return unabsorb(mixed, self._maps)

    def _rotate(self, q_rope: Tensor, step: Step) -> Tensor:
        return rotate(q_rope, step.cos, step.sin)

    def _store(self, x: Tensor, step: Step) -> None:
        """Write the latents and rotated keys of this step's tokens into the cache."""
        widths = [self._spec.kv_lora_rank, self._spec.qk_rope_head_dim]
        latent, k_rope = torch.split(self._kv_a(x), widths, -1)
        k_rope = rotate(k_rope[:, None], step.cos, step.sin)[:, 0]
        step.cache.write(self._layer, step.batch.slots, torch.cat((self._kv_norm(latent), k_rope), -1))

    def _absorbs(self, segment: Segment) -> bool:
        return absorbs(self._form, self._spec, segment.whole.length, segment.whole.position)

    def _entries(self, segment: Segment, step: Step, dtype: torch.dtype) -> Tensor:
        return step.cache.read(self._layer, segment.pages, segment.n_visible).to(dtype)

    def _naive(self, q_nope: Tensor, q_rope: Tensor, segment: Segment, step: Step) -> Tensor:
        entries = self._entries(segment, step, q_nope.dtype)
        return attend_expanded(
            (q_nope, q_rope), entries, self._maps, position=segment.position, scale=self._scale
        )

    def _attend_absorbed(
        self, values: Tensor, q_nope: Tensor, q_rope: Tensor, segments: list[Segment], step: Step
    ) -> None:
        """Fill the rows of `segments` in `values`; k_b and v_b are read once for all of them."""
        rows = torch.cat([torch.arange(s.rows.start, s.rows.stop, device=values.device) for s in segments])
        queries = torch.cat((absorb(q_nope[rows], self._maps), q_rope[rows]), -1)
        mixed, start = [], 0
        for segment in segments:
            mine = queries[start : start + segment.length]
            entries = self._entries(segment, step, mine.dtype)
            rank = self._spec.kv_lora_rank
            mixed.append(attend_latents(mine, entries, rank, position=segment.position, scale=self._scale))
            start += segment.length
        values[rows] = unabsorb(torch.cat(mixed), self._maps)


def build_attention(
    site: Site,
    form: MlaForm = "auto",
    native: Callable[[ModelSpec], NativeMla] | None = None,
    gpu: Callable[[ModelSpec], type[LatentAttention]] | None = None,
) -> Attention:
    """One layer's attention with its projections.

    Args:
        site: where.
        form: which arithmetic.
        native: gives the kernels for a model's dimensions; they serve layers in float32 on the CPU.
        gpu: gives the implementation that a GPU has for a model's dimensions.
    """
    spec = site.spec
    width = spec.kv_lora_rank + spec.qk_rope_head_dim
    query = build_query(site)
    kv_a = site.child("kv_a_proj_with_mqa", LINEAR, (width, spec.hidden_size))
    kv_norm = site.child("kv_a_layernorm", NORM, (spec.kv_lora_rank,))
    output = site.child("o_proj", LINEAR, (spec.hidden_size, spec.n_heads * spec.v_head_dim))
    if native is not None and site.runs_native:
        shared = native(spec)
        return NativeLatentAttention(
            spec=spec,
            layer=site.layer,
            query=query,
            kv_a=kv_a,
            kv_norm=kv_norm,
            maps=packed_maps(site, exact=shared.exact_maps),
            output=output,
            form=form,
            native=shared,
        )
    attention = LatentAttention if gpu is None else gpu(spec)
    return attention(
        spec=spec,
        layer=site.layer,
        query=query,
        kv_a=kv_a,
        kv_norm=kv_norm,
        maps=expanded_maps(site),
        output=output,
        form=form,
    )
