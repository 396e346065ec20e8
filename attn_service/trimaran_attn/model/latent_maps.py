"""Wkv_b of a layer, from both layouts of the file: `attn_kv_b`, or transposed `attn_k_b` and `attn_v_b`."""

from __future__ import annotations

import numpy as np
import torch
import trimaran_kernels
from numpy.typing import NDArray
from torch import Tensor
from trimaran.gguf import GGMLType

from trimaran_attn.model.mla import LatentMaps
from trimaran_attn.registry import Site
from trimaran_attn.weights import QuantTensor

LARGEST_HALF = torch.finfo(torch.float16).max


def expanded_maps(site: Site) -> LatentMaps:
    """As the site's device and dtype want them.

    Absorbing multiplies by the transposed matrix of what one of the layouts stores, which quantised rows do
    not allow. Expanded they are heads × (nope + v) × latent values a layer: 8 MiB in V2-Lite and 64 MiB in V3
    as float32, half of it in 16 bits.
    """
    k_b, v_b = (half.to(site.device, site.dtype).contiguous() for half in _halves(site, _tensors(site)))
    return LatentMaps(k_b, v_b)


def packed_maps(site: Site, *, exact: bool) -> trimaran_kernels.LatentMaps:
    """For the CPU's kernels.

    Either half that the file stores apart and as Q8_0 stays in its blocks, which loses nothing (in the other
    layout, blocks of `k_b` lie across its products). Everything else becomes binary16 if its magnitudes allow
    it: half the bytes to read for each token, and a relative error of 2^-12.

    Args:
        site: where.
        exact: nothing is rounded: what is no block stays float32, and so do products with either.
    """
    tensors = _tensors(site)
    if len(tensors) == 2:
        k_b, v_b = (_packed(tensor) for tensor in tensors)
    else:
        k_b, v_b = (half.contiguous().numpy() for half in _halves(site, tensors))
    exact = exact or all(tensor.type == GGMLType.F32 for tensor in tensors)
    return trimaran_kernels.LatentMaps(k_b, v_b, not exact and _fits_half(k_b) and _fits_half(v_b))


def _tensors(site: Site) -> list[QuantTensor]:
    """Both halves in one, or [heads, latent, nope] and [heads, v, latent]."""
    spec, weights = site.spec, site.weights
    heads, rank, nope, v = spec.n_heads, spec.kv_lora_rank, spec.qk_nope_head_dim, spec.v_head_dim
    if weights.has(f"{site.path}.kv_b_proj"):
        return [weights.quantised(f"{site.path}.kv_b_proj", (heads * (nope + v), rank))]
    return [
        weights.quantised(f"{site.path}.k_b_proj", (heads, rank, nope)),
        weights.quantised(f"{site.path}.v_b_proj", (heads, v, rank)),
    ]


def _halves(site: Site, tensors: list[QuantTensor]) -> tuple[Tensor, Tensor]:
    """[heads, nope, latent] and [heads, latent, v], float32."""
    if len(tensors) == 2:
        k_b, v_b = (tensor.dequantize() for tensor in tensors)
        return k_b.transpose(1, 2), v_b.transpose(1, 2)
    spec = site.spec
    nope, v = spec.qk_nope_head_dim, spec.v_head_dim
    k_b, v_b = torch.split(
        tensors[0].dequantize().view(spec.n_heads, nope + v, spec.kv_lora_rank), [nope, v], 1
    )
    return k_b, v_b.transpose(1, 2)


def _packed(half: QuantTensor) -> NDArray[np.uint8] | NDArray[np.float32]:
    if half.type == GGMLType.Q8_0:
        return half.raw.reshape(*half.shape[:2], -1)
    return half.dequantize().transpose(1, 2).contiguous().numpy()


def _fits_half(half: NDArray[np.uint8] | NDArray[np.float32]) -> bool:
    return half.dtype == np.uint8 or bool(np.abs(half).max() < LARGEST_HALF)
