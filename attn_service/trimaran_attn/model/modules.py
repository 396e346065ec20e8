"""The implementations that exist of each kind of module."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import trimaran_kernels
from torch import Tensor
from trimaran.spec import ModelSpec, MoeSpec

from trimaran_attn.experts import Experts
from trimaran_attn.model.attention import LatentAttention, build_attention
from trimaran_attn.model.embedding import build_embedding
from trimaran_attn.model.gate import Gate, build_gate
from trimaran_attn.model.kinds import ATTENTION, EMBEDDING, EXPERTS, GATE, HEAD, LINEAR, MLP, MOE, NORM
from trimaran_attn.model.linear import DenseLinear, Linear, QuantLinear, matrix_path
from trimaran_attn.model.mla import MlaForm
from trimaran_attn.model.moe import build_mlp, build_moe
from trimaran_attn.model.native_attention import make_native
from trimaran_attn.model.norm import RMSNorm, build_norm
from trimaran_attn.model.packed_linear import build_packed
from trimaran_attn.registry import Registry, Site

FORMS: tuple[MlaForm, ...] = ("auto", "naive", "absorbed")


def register_modules(
    registry: Registry,
    *,
    experts: Callable[[Site], Experts],
    pool: trimaran_kernels.ThreadPool,
    linears: str,
    mla: MlaForm,
    native: bool,
    exact_maps: bool = False,
    defer_experts: int = 0,
) -> None:
    """Fill a registry.

    Args:
        registry: to be filled.
        experts: gives each layer its way to the routed experts.
        pool: threads of the quantised matrices.
        linears: default of the matrices: "packed" (CPU, int8 activations), "quantised" (CPU, float32
            activations), "dense", or "gpu": quantised too, and all other modules have the GPU's kernels.
        mla: default of the attention.
        native: whether modules in float32 on the CPU use the kernels for everything, or torch, the reference,
            for all but quantised matrices.
        exact_maps: whether the kernels keep Wkv_b in float32 instead of binary16.
        defer_experts: how many of a token's experts are added one layer later.
    """
    threads = pool if native else None
    kernels = cache(partial(make_native, pool=pool, exact_maps=exact_maps)) if native else None
    memory = trimaran_kernels.HugePages()
    registry.register(EMBEDDING, "quantised", build_embedding)
    on_gpu = linears == "gpu"
    registry.register(NORM, "rms", partial(build_norm, pool=threads, gpu=_gpu_norm if on_gpu else None))
    for kind in (LINEAR, HEAD):
        registry.register(kind, "quantised", _quantised(pool), default=linears == "quantised")
        packed = partial(build_packed, pool=pool, memory=memory)
        registry.register(kind, "packed", packed, default=linears == "packed")
        registry.register(kind, "dense", build_dense, default=linears == "dense")
        registry.register(kind, "gpu", _build_on_gpu, default=linears == "gpu")
    gpu = _gpu_attention if on_gpu else None
    for form in FORMS:
        build = partial(build_attention, form=form, native=kernels, gpu=gpu)
        registry.register(ATTENTION, form, build, default=form == mla)
    registry.register(MLP, "swiglu", build_mlp)
    registry.register(MOE, "moe", partial(build_moe, defer=defer_experts))
    registry.register(GATE, "topk", partial(build_gate, pool=threads, gpu=_gpu_gate if on_gpu else None))
    registry.register(EXPERTS, "service", experts)


def build_dense(site: Site) -> DenseLinear:
    """Expand the matrix once, in the site's element type."""
    return DenseLinear(site.weights.dense(matrix_path(site), site.shape).to(site.device, site.dtype))


def _quantised(pool: trimaran_kernels.ThreadPool) -> Callable[[Site], QuantLinear]:
    def build(site: Site) -> QuantLinear:
        return QuantLinear(site.weights.quantised(matrix_path(site), site.shape), pool)

    return build


def _build_on_gpu(site: Site) -> Linear:
    from trimaran_attn.model.gpu_linear import build_gpu_linear  # noqa: PLC0415 Triton only where it is used

    return build_gpu_linear(site)


def _gpu_attention(spec: ModelSpec) -> type[LatentAttention]:
    from trimaran_attn.model.gpu_attention import GpuLatentAttention, fits_kernels  # noqa: PLC0415 as above

    return GpuLatentAttention if fits_kernels(spec) else LatentAttention


def _gpu_norm(weight: Tensor, eps: float) -> RMSNorm:
    from trimaran_attn.model.gpu_small import GpuRMSNorm  # noqa: PLC0415 as above

    return GpuRMSNorm(weight, eps)


def _gpu_gate(spec: MoeSpec, weight: Tensor, bias: Tensor | None) -> Gate:
    from trimaran_attn.model.gpu_small import GpuGate  # noqa: PLC0415 as above

    return GpuGate(spec, weight, bias)
