"""Entries of the latent cache to bytes and back: the reference of what the native kernels do."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad
from trimaran.kv_format import SCALE_GROUP, KvFormat, entry_bytes, scales_offset
from trimaran.spec import ModelSpec

_DTYPES: dict[KvFormat, torch.dtype] = {"f32": torch.float32, "bf16": torch.bfloat16}
_LARGEST = {"fp8": 448.0, "int8": 127.0}
_SMALLEST_SCALE = torch.finfo(torch.float32).tiny


def encode(entries: Tensor, spec: ModelSpec, kind: KvFormat) -> Tensor:
    """Entries [T, latent + rope] → uint8 [T, entry_bytes]."""
    if kind in _DTYPES:
        return entries.to(_DTYPES[kind]).contiguous().view(torch.uint8)
    latent, rope = torch.split(entries.float(), [spec.kv_lora_rank, spec.qk_rope_head_dim], -1)
    codes, scales = _quantise(latent, kind)
    raw = torch.zeros(len(entries), entry_bytes(spec, kind), dtype=torch.uint8, device=entries.device)
    scales_at = scales_offset(spec.kv_lora_rank)
    rope_at = scales_at + 4 * scales.shape[1]
    raw[:, : codes.shape[1]] = codes
    raw[:, scales_at:rope_at] = scales.view(torch.uint8)
    raw[:, rope_at : rope_at + 2 * rope.shape[1]] = rope.to(torch.bfloat16).contiguous().view(torch.uint8)
    return raw


def decode(raw: Tensor, spec: ModelSpec, kind: KvFormat) -> Tensor:
    """uint8 [T, entry_bytes] → [T, latent + rope], float32, or bfloat16 where that is what is stored."""
    if kind in _DTYPES:
        return raw.view(_DTYPES[kind])
    latent, rope = spec.kv_lora_rank, spec.qk_rope_head_dim
    scales_at = scales_offset(latent)
    rope_at = scales_at + 4 * -(-latent // SCALE_GROUP)
    codes = raw[:, :latent].contiguous().view(torch.float8_e4m3fn if kind == "fp8" else torch.int8)
    scales = raw[:, scales_at:rope_at].contiguous().view(torch.float32)
    keys = raw[:, rope_at : rope_at + 2 * rope].contiguous().view(torch.bfloat16)
    spread = scales.repeat_interleave(SCALE_GROUP, -1)[:, :latent]
    return torch.cat((codes.float() * spread, keys.float()), -1)


def _quantise(latent: Tensor, kind: KvFormat) -> tuple[Tensor, Tensor]:
    """Codes uint8 [T, latent] and scales float32 [T, groups]; a group that is not finite has scale NaN."""
    width = latent.shape[1]
    groups = pad(latent, (0, -width % SCALE_GROUP)).view(len(latent), -1, SCALE_GROUP)
    largest = groups.abs().amax(-1)
    scales = torch.where(largest.isfinite(), largest / _LARGEST[kind], torch.nan)
    scaled = torch.where((scales >= _SMALLEST_SCALE)[..., None], groups / scales[..., None], 0.0)
    scaled = scaled.clamp(-_LARGEST[kind], _LARGEST[kind]).flatten(-2)[:, :width]
    codes = scaled.to(torch.float8_e4m3fn) if kind == "fp8" else scaled.round().to(torch.int8)
    return codes.contiguous().view(torch.uint8), scales
