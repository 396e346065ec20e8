"""What the attention kernels must compute, in plain torch, float32."""

from __future__ import annotations

import torch
from torch import Tensor

from trimaran_kernels.gpu.latents import FP8, PLAIN, SCALE_GROUP, Entry, LayerViews


def entries_reference(layer: LayerViews, entry: Entry, slots: Tensor) -> Tensor:
    """Decoded entries [S, latent + rope] float32 of `slots` [S]."""
    slots = slots.long()
    codes = layer.codes.flatten(0, 1)[slots]
    if entry.form == PLAIN:
        return codes.float()
    latent = codes[:, : entry.latent].contiguous()
    latent = latent.view(torch.float8_e4m3fn).float() if entry.form == FP8 else latent.float()
    n_groups = -(-entry.latent // SCALE_GROUP)
    scales = layer.scales.flatten(0, 1)[slots][:, entry.scales_at : entry.scales_at + n_groups]
    latent = latent * scales.repeat_interleave(SCALE_GROUP, 1)[:, : entry.latent]
    keys = layer.keys.flatten(0, 1)[slots][:, entry.keys_at : entry.keys_at + entry.rope]
    return torch.cat((latent, keys.float()), 1)


def decode_reference(
    queries: Tensor,
    layer: LayerViews,
    entry: Entry,
    tables: Tensor,
    requests: Tensor,
    lengths: Tensor,
    scale: float,
) -> Tensor:
    """As `decode_attention`, [T, H, latent] float32."""
    mixed = []
    for query, request, length in zip(queries.float(), requests.tolist(), lengths.tolist(), strict=True):
        t = torch.arange(length, device=queries.device)
        slots = tables[request].long()[t // entry.page] * entry.page + t % entry.page
        entries = entries_reference(layer, entry, slots)
        weights = (query @ entries.T * scale).softmax(-1)
        mixed.append(weights @ entries[:, : entry.latent])
    return torch.stack(mixed)


def store_reference(kv: Tensor, weight: Tensor, eps: float, cos: Tensor, sin: Tensor, entry: Entry) -> Tensor:
    """Normed latents and rotated keys [T, latent + rope] float32, before the cache's rounding."""
    latent, key = torch.split(kv.float(), [entry.latent, entry.rope], 1)
    latent = torch.nn.functional.rms_norm(latent, weight.shape, weight, eps)
    even, odd = key[:, ::2], key[:, 1::2]
    rotated = torch.stack((even * cos - odd * sin, odd * cos + even * sin), -1).flatten(1)
    return torch.cat((latent, rotated), 1)
