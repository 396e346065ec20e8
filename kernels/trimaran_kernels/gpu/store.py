"""Norm, rotate and write the latents of a step's tokens into the paged cache: one kernel."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from trimaran_kernels.gpu.latents import Entry, LayerViews, float_to_fp8


@triton.jit
def store_kernel(kv, weight, eps, cos, sin, slots, layer, kv_stride, E: tl.constexpr, GROUP: tl.constexpr):
    """One token: latent / rms(latent) · weight and the rotated key, in the cache's form, to its slot."""
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row).to(tl.int64)
    groups: tl.constexpr = E.latent // GROUP
    i = tl.arange(0, groups)[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    latent = tl.load(kv + row * kv_stride + i).to(tl.float32)
    mean = tl.sum(tl.sum(latent * latent, 1), 0) / E.latent
    latent = latent * tl.rsqrt(mean + eps) * tl.load(weight + i)
    target = slot * E.code_stride + i
    if E.form == 0:
        tl.store(layer.codes + target, latent.to(layer.codes.dtype.element_ty))
    else:
        limit: tl.constexpr = 448.0 if E.form == 1 else 127.0
        largest = tl.max(tl.abs(latent), 1)
        finite = tl.min(tl.where(tl.abs(latent) < float("inf"), 1, 0), 1) > 0
        scales = tl.where(finite, largest / limit, float("nan"))
        usable = finite & (scales >= 1.1754943508222875e-38)
        scaled = tl.where(usable[:, None], latent / tl.where(usable, scales, 1.0)[:, None], 0.0)
        scaled = tl.minimum(tl.maximum(scaled, -limit), limit)
        g = tl.arange(0, groups)
        tl.store(layer.scales + slot * E.scale_stride + E.scales_at + g, scales)
        if E.form == 1:
            tl.store(layer.codes + target, float_to_fp8(scaled))
        else:
            rounded = (scaled + 12582912.0) - 12582912.0
            tl.store(layer.codes + target, rounded.to(tl.int8))
    key = kv + row * kv_stride + E.latent
    _store_key(key, cos, sin, row, layer.keys + slot * E.key_stride + E.keys_at, E)


@triton.jit
def _store_key(key, cos, sin, row, target, E: tl.constexpr):
    """Rotate interleaved pairs and write them."""
    half: tl.constexpr = E.rope // 2
    pair = tl.arange(0, half)
    even = tl.load(key + 2 * pair).to(tl.float32)
    odd = tl.load(key + 2 * pair + 1).to(tl.float32)
    c = tl.load(cos + row * half + pair)
    s = tl.load(sin + row * half + pair)
    dtype = target.dtype.element_ty
    tl.store(target + 2 * pair, (even * c - odd * s).to(dtype))
    tl.store(target + 2 * pair + 1, (odd * c + even * s).to(dtype))


def store_latents(
    kv: Tensor,
    weight: Tensor,
    eps: float,
    cos: Tensor,
    sin: Tensor,
    slots: Tensor,
    layer: LayerViews,
    entry: Entry,
) -> None:
    """Write the entries of T tokens.

    Args:
        kv: [T, latent + rope], the projection's output.
        weight: [latent] float32, the latent's norm.
        eps: of the norm.
        cos, sin: [T, rope / 2] float32, contiguous.
        slots: [T] integers, page × page size + offset.
        layer, entry: where they go.
    """
    group = min(entry.latent, 128)
    store_kernel[(len(kv),)](
        kv, weight, eps, cos, sin, slots, layer, kv.stride(0), E=entry, GROUP=group, num_warps=4
    )
