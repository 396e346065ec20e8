"""Multi-head latent attention over the paged cache: projections here, the arithmetic in `mla`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol

import torch
from torch import Tensor
from trimaran.spec import ModelSpec
from trimaran.timeline import Tracer

from trimaran_attn.kv_cache import LatentCache
from trimaran_attn.model.batch import Batch, Segment
from trimaran_attn.model.kinds import LINEAR, NORM
from trimaran_attn.model.linear import Linear
from trimaran_attn.model.mla import (
    LatentMaps,
    absorb,
    absorbing_is_cheaper,
    attend_expanded,
    attend_latents,
    unabsorb,
)
from trimaran_attn.model.norm import RMSNorm
from trimaran_attn.model.rope import rotate, softmax_scale
from trimaran_attn.registry import Site

MlaForm = Literal["auto", "naive", "absorbed"]


@dataclass(frozen=True)
class Step:
    """What all layers of one forward pass share.

    Attributes:
        batch: the tokens.
        cos, sin: [T, rope / 2] of their positions.
        cache: where their latents go.
        tracer: records what the layers do, if it is asked to.
    """

    batch: Batch
    cos: Tensor
    sin: Tensor
    cache: LatentCache
    tracer: Tracer


class Attention(Protocol):
    """The first half of a layer."""

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        """x: [T, hidden] → [T, hidden]; the step's latents are in the cache afterwards."""
        ...


class Query(Protocol):
    """Hidden vectors to the queries of all heads."""

    def __call__(self, x: Tensor) -> Tensor:
        """x: [T, hidden] → [T, heads × (nope + rope)]."""
        ...


class LoraQuery:
    """Wqb·rms(Wqa·x): V2, V3."""

    def __init__(self, down: Linear, norm: RMSNorm, up: Linear) -> None:
        self._down = down
        self._norm = norm
        self._up = up

    def __call__(self, x: Tensor) -> Tensor:
        """x: [T, hidden] → [T, heads × (nope + rope)]."""
        return self._up(self._norm(self._down(x)))


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
        q_rope = rotate(q_rope, step.cos, step.sin)
        self._store(x, step)
        values = x.new_empty(len(x), spec.n_heads, spec.v_head_dim)
        absorbed = [segment for segment in step.batch.segments if self._absorbs(segment)]
        for segment in step.batch.segments:
            if segment not in absorbed:
                values[segment.rows] = self._naive(q_nope[segment.rows], q_rope[segment.rows], segment, step)
        if absorbed:
            self._attend_absorbed(values, q_nope, q_rope, absorbed, step)
        return self._output(values.flatten(1))

    def _store(self, x: Tensor, step: Step) -> None:
        """Write the latents and rotated keys of this step's tokens into the cache."""
        widths = [self._spec.kv_lora_rank, self._spec.qk_rope_head_dim]
        latent, k_rope = torch.split(self._kv_a(x), widths, -1)
        k_rope = rotate(k_rope[:, None], step.cos, step.sin)[:, 0]
        step.cache.write(self._layer, step.batch.slots, torch.cat((self._kv_norm(latent), k_rope), -1))

    def _absorbs(self, segment: Segment) -> bool:
        if self._form != "auto":
            return self._form == "absorbed"
        rope = self._spec.qk_rope_head_dim
        return absorbing_is_cheaper(segment.length, segment.n_visible, self._maps, rope)

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


def build_attention(site: Site, form: MlaForm = "auto") -> LatentAttention:
    """One layer's attention with its projections."""
    spec = site.spec
    width = spec.kv_lora_rank + spec.qk_rope_head_dim
    return LatentAttention(
        spec=spec,
        layer=site.layer,
        query=_build_query(site),
        kv_a=site.child("kv_a_proj_with_mqa", LINEAR, (width, spec.hidden_size)),
        kv_norm=site.child("kv_a_layernorm", NORM, (spec.kv_lora_rank,)),
        maps=_latent_maps(site),
        output=site.child("o_proj", LINEAR, (spec.hidden_size, spec.n_heads * spec.v_head_dim)),
        form=form,
    )


def attention_builder(form: MlaForm) -> partial[LatentAttention]:
    """`build_attention` for one form of the arithmetic."""
    return partial(build_attention, form=form)


def _build_query(site: Site) -> Query:
    spec = site.spec
    width = spec.n_heads * (spec.qk_nope_head_dim + spec.qk_rope_head_dim)
    if spec.q_lora_rank is None:
        return site.child("q_proj", LINEAR, (width, spec.hidden_size))
    return LoraQuery(
        site.child("q_a_proj", LINEAR, (spec.q_lora_rank, spec.hidden_size)),
        site.child("q_a_layernorm", NORM, (spec.q_lora_rank,)),
        site.child("q_b_proj", LINEAR, (width, spec.q_lora_rank)),
    )


def _latent_maps(site: Site) -> LatentMaps:
    """Wkv_b from either layout of the file: one `attn_kv_b`, or `attn_k_b` (transposed) and `attn_v_b`.

    It is expanded: absorbing multiplies by the transposed matrix of what one of the two layouts stores, which
    quantised rows do not allow. That is heads × (nope + v) × latent values a layer: 8 MiB in V2-Lite and
    64 MiB in V3 as float32, half of it as bfloat16.
    """
    spec = site.spec
    heads, rank, nope, v = spec.n_heads, spec.kv_lora_rank, spec.qk_nope_head_dim, spec.v_head_dim
    if site.weights.has(f"{site.path}.kv_b_proj"):
        both = site.weights.dense(f"{site.path}.kv_b_proj", (heads * (nope + v), rank))
        k_b, v_b = torch.split(both.view(heads, nope + v, rank), [nope, v], 1)
    else:
        k_b = site.weights.dense(f"{site.path}.k_b_proj", (heads, rank, nope)).transpose(1, 2)
        v_b = site.weights.dense(f"{site.path}.v_b_proj", (heads, v, rank))
    k_b, v_b = k_b.to(site.device, site.dtype), v_b.transpose(1, 2).to(site.device, site.dtype)
    return LatentMaps(k_b.contiguous(), v_b.contiguous())
