"""The paged latent cache as kernels see it: a layer's pages of codes, scales and rotated keys."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

SCALE_GROUP = 128
"""Values of a latent that share a scale, in the 8-bit forms."""

PLAIN, FP8, INT8 = 0, 1, 2
"""Forms of an entry: 16 or 32-bit floats, E4M3 codes (arXiv 2209.05433), signed bytes."""

_FORMS = {"f32": PLAIN, "bf16": PLAIN, "f16": PLAIN, "fp8": FP8, "int8": INT8}
_PLAIN_TYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


class Entry(NamedTuple):
    """How an entry lies in memory; a compile-time constant. Strides count elements of each view.

    Attributes:
        form: PLAIN, FP8 or INT8.
        latent, rope: values of each.
        page: tokens per page.
        code_stride, scale_stride, key_stride: from one entry to the next.
        scales_at, keys_at: where an entry's scales and rotated key start.
    """

    form: int
    latent: int
    rope: int
    page: int
    code_stride: int
    scale_stride: int
    key_stride: int
    scales_at: int
    keys_at: int


class LayerViews(NamedTuple):
    """One layer's bytes under the types of what they hold.

    Attributes:
        codes: the latents: floats, uint8 codes of E4M3, or int8.
        scales: float32; unused in the plain form.
        keys: the rotated keys: floats.
    """

    codes: Tensor
    scales: Tensor
    keys: Tensor


def describe_entry(kind: str, latent: int, rope: int, page: int) -> Entry:
    """The layout of `trimaran.kv_format`.

    f32, bf16, f16: latent and rotated key as such. fp8, int8: a byte for each value of the latent, padded to
    4; a float32 scale for each `SCALE_GROUP` of them; the rotated key as bf16; the sum padded to 4 bytes.
    """
    form = _FORMS[kind]
    if form == PLAIN:
        width = latent + rope
        return Entry(form, latent, rope, page, width, 0, width, 0, latent)
    scales_at = _round_up(latent)
    keys_at = scales_at + 4 * triton.cdiv(latent, SCALE_GROUP)
    nbytes = _round_up(keys_at + 2 * rope)
    return Entry(form, latent, rope, page, nbytes, nbytes // 4, nbytes // 2, scales_at // 4, keys_at // 2)


def view_layer(raw: Tensor, kind: str) -> LayerViews:
    """Views of a layer's bytes, uint8 [pages, page, entry bytes], contiguous."""
    if _FORMS[kind] == PLAIN:
        values = raw.view(_PLAIN_TYPES[kind])
        return LayerViews(values, values, values)
    codes = raw if kind == "fp8" else raw.view(torch.int8)
    return LayerViews(codes, raw.view(torch.float32), raw.view(torch.bfloat16))


def _round_up(n: int) -> int:
    return -(-n // 4) * 4


@triton.jit
def load_latents(layer, slots, there, E: tl.constexpr):
    """Latents [S, E.latent] of entries `slots` [S] int64; 0 where not `there`. In E's form's own precision.

    Returns float32 for the 8-bit forms, else the cache's type.
    """
    if E.form == 0:
        i = tl.arange(0, E.latent)
        return tl.load(
            layer.codes + slots[:, None] * E.code_stride + i[None, :], mask=there[:, None], other=0
        )
    else:
        # In groups, so that a group's scale takes one register, not as many as it has values.
        group: tl.constexpr = E.latent if E.latent < 128 else 128
        groups: tl.constexpr = E.latent // group
        g = tl.arange(0, groups)
        i = g[:, None] * group + tl.arange(0, group)[None, :]
        at = slots[:, None, None] * E.code_stride + i[None, :, :]
        codes = tl.load(layer.codes + at, mask=there[:, None, None], other=0)
        scale_at = slots[:, None] * E.scale_stride + E.scales_at + g[None, :]
        scales = tl.load(layer.scales + scale_at, mask=there[:, None], other=0.0)[:, :, None]
        if E.form == 1:  # noqa: SIM108 one of the two is compiled
            latents = fp8_to_float(codes) * scales
        else:
            latents = codes.to(tl.float32) * scales
        return tl.reshape(latents, [slots.shape[0], E.latent])


@triton.jit
def load_keys(layer, slots, there, E: tl.constexpr):
    """Rotated keys [S, E.rope] of entries."""
    at = slots[:, None] * E.key_stride + E.keys_at + tl.arange(0, E.rope)[None, :]
    return tl.load(layer.keys + at, mask=there[:, None], other=0.0)


@triton.jit
def fp8_to_float(codes):
    """E4M3 codes, uint8, to float32. Not by the hardware's conversion, which GPUs before Ada lack.

    Sign, exponent and mantissa are moved to where binary16 has them; the exponents' biases differ by 8.
    """
    wide = codes.to(tl.uint16)
    half = ((wide & 0x80) << 8) | ((wide & 0x7F) << 7)
    return half.to(tl.float16, bitcast=True).to(tl.float32) * 256.0


@triton.jit
def float_to_fp8(x):
    """Float32 within ±448 to the nearest E4M3 code, ties to even, as uint8."""
    magnitude = tl.abs(x)
    bits = magnitude.to(tl.uint32, bitcast=True)
    # Round the mantissa to three bits; a carry moves on into the exponent. The biases are 127 and 7.
    normal = ((bits + 0x7FFFF + (bits >> 20 & 1)) >> 20).to(tl.int32) - (120 << 3)
    # Below 2^-6 codes count steps of 2^-9; adding 1.5 · 2^23 rounds to an integer.
    steps = (magnitude * 512.0 + 12582912.0) - 12582912.0
    code = tl.where(magnitude < 0.015625, steps.to(tl.int32), normal)
    return (code | tl.where(x < 0, 0x80, 0)).to(tl.uint8)
