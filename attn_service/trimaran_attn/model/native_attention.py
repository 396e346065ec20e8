"""Multi-head latent attention on the CPU: projections here, everything else in C++ over the cache's pages."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import trimaran_kernels
from torch import Tensor
from trimaran.spec import ModelSpec

from trimaran_attn.model.batch import Segment
from trimaran_attn.model.linear import Linear, NativeLinear
from trimaran_attn.model.mla import EVEN, TILED, MlaForm, NaiveCost, absorbs
from trimaran_attn.model.norm import RMSNorm
from trimaran_attn.model.query import LoraQuery, Query
from trimaran_attn.model.rope import softmax_scale
from trimaran_attn.model.step import Ragged, Step


@dataclass(frozen=True)
class NativeMla:
    """What the layers share.

    Attributes:
        pool: threads.
        kernels: with their scratch memory.
        exact_maps: whether nothing of Wkv_b is rounded, whatever the file has.
        cost: of the naive form's kernels.
    """

    pool: trimaran_kernels.ThreadPool
    kernels: trimaran_kernels.Mla
    exact_maps: bool
    cost: NaiveCost = EVEN


def make_native(spec: ModelSpec, pool: trimaran_kernels.ThreadPool, *, exact_maps: bool = False) -> NativeMla:
    """The kernels for a model's dimensions."""
    nope, rope = spec.qk_nope_head_dim, spec.qk_rope_head_dim
    scale = softmax_scale(spec.rope, nope + rope)
    dims = (spec.n_heads, nope, rope, spec.kv_lora_rank, spec.v_head_dim)
    kernels = trimaran_kernels.Mla(pool, *dims, scale)
    return NativeMla(pool, kernels, exact_maps, naive_cost(trimaran_kernels.detect_isa(), exact_maps))


def naive_cost(isa: str, exact_maps: bool) -> NaiveCost:
    """Of the kernels that an instruction set has for it: only maps in 16 bits go through matrix tiles."""
    return TILED if isa == "amx" and not exact_maps else EVEN


class NativeLatentAttention:
    """MLA of one layer, in one call if its matrices are the kernels' own; else, to the same bits, in several.

    Args:
        spec: dimensions.
        layer: which layer of the cache it uses.
        query, kv_a, kv_norm, output: the projections.
        maps: Wkv_b.
        form: which arithmetic; "auto" takes the cheaper one for each request.
        native: the kernels.
    """

    def __init__(
        self,
        *,
        spec: ModelSpec,
        layer: int,
        query: Query,
        kv_a: Linear,
        kv_norm: RMSNorm,
        maps: trimaran_kernels.LatentMaps,
        output: Linear,
        form: MlaForm,
        native: NativeMla,
    ) -> None:
        self._spec = spec
        self._layer = layer
        self._query = query
        self._kv_a = kv_a
        self._norm_weight = kv_norm.weight.numpy()
        self._eps = kv_norm.eps
        self._maps = maps
        self._output = output
        self._form = form
        self._native = native
        self._whole = self._fuse(kv_norm)

    def _fuse(self, kv_norm: RMSNorm) -> trimaran_kernels.AttentionLayer | None:
        """All of it as one kernel, if every matrix has one."""
        query, down, query_norm = self._query, None, None
        if isinstance(query, LoraQuery):
            if not isinstance(query.down, NativeLinear):
                return None
            down, query_norm, query = query.down.kernel, query.norm.weight.numpy(), query.up
        parts = (query, self._kv_a, self._output)
        if not all(isinstance(part, NativeLinear) for part in parts):
            return None
        up, kv, output = (part.kernel for part in parts if isinstance(part, NativeLinear))
        return trimaran_kernels.AttentionLayer(
            self._native.pool,
            self._native.kernels,
            down,
            query_norm,
            up,
            kv,
            self._norm_weight,
            self._maps,
            output,
            kv_norm.eps,
        )

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        """x: [T, hidden] float32 → [T, hidden]."""
        if self._whole is None:
            return self.by_parts(x, step)
        ragged = self.ragged(step)
        out = torch.empty(x.shape)
        self._whole(
            x.contiguous().numpy(),
            ragged.cos,
            ragged.sin,
            ragged.slots,
            step.cache.native(self._layer),
            ragged.segments,
            ragged.page_table,
            out.numpy(),
        )
        return out

    @property
    def whole(self) -> trimaran_kernels.AttentionLayer | None:
        """The one call that does it all, if there is one."""
        return self._whole

    @property
    def pool(self) -> trimaran_kernels.ThreadPool:
        """Threads of the kernels."""
        return self._native.pool

    def ragged(self, step: Step) -> Ragged:
        """A step as the kernels take it."""
        return step.ragged(self._form, self._absorbs)

    def by_parts(self, x: Tensor, step: Step) -> Tensor:
        """The same with a call for each matrix, whatever computes them."""
        pages = step.cache.native(self._layer)
        ragged = self.ragged(step)
        kv = self._kv_a(x).contiguous().numpy()
        trimaran_kernels.store_latents(
            self._native.pool,
            pages,
            kv,
            self._norm_weight,
            self._eps,
            ragged.cos,
            ragged.sin,
            ragged.slots,
        )
        values = torch.empty(len(x), self._spec.n_heads * self._spec.v_head_dim)
        self._native.kernels.attend(
            self._maps,
            self._query(x).contiguous().numpy(),
            ragged.cos,
            ragged.sin,
            pages,
            ragged.segments,
            ragged.page_table,
            values.numpy(),
        )
        return self._output(values)

    def _absorbs(self, segment: Segment) -> bool:
        whole, cost = segment.whole, self._native.cost
        return absorbs(self._form, self._spec, whole.length, whole.position, cost)
