"""Random inputs for the GPU's kernels: fresh ones in every run."""

from __future__ import annotations

import torch
from torch import Tensor
from trimaran.gguf import GGMLType
from trimaran_kernels.gpu.latents import Entry, LayerViews, describe_entry, view_layer
from trimaran_kernels.gpu.matrix import QuantMatrix

PAGE = 64
_SCALES = {GGMLType.Q4_K: (0, 2), GGMLType.Q5_K: (0, 2), GGMLType.Q6_K: (208,)}


def random_matrix(type_: GGMLType, rows: int, columns: int, device: torch.device) -> QuantMatrix:
    """All bits random but the super-scales', which make weights about as large as a model's."""
    n_blocks = rows * columns // type_.block_size
    blocks = torch.randint(0, 256, (n_blocks, type_.type_size), dtype=torch.uint8, device=device)
    for offset in _SCALES.get(type_, (0,)):
        scales = (torch.rand(n_blocks, 1, device=device) + 0.5).to(torch.float16) * 1e-3
        blocks[:, offset : offset + 2] = scales.view(torch.uint8)
    return QuantMatrix.from_blocks(type_, blocks.flatten(), (rows, columns))


def random_tokens(n: int, width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Standard normal [n, width]."""
    return torch.randn(n, width, device=device).to(dtype)


def random_layer(
    kind: str, n_pages: int, latent: int, rope: int, device: torch.device
) -> tuple[LayerViews, Entry]:
    """A layer of a cache whose entries are like normed latents."""
    entry = describe_entry(kind, latent, rope, PAGE)
    width = entry.code_stride * (1 if entry.form else 2)
    if entry.form == 0:
        values = torch.randn(n_pages, PAGE, latent + rope, device=device).to(torch.bfloat16)
        return view_layer(values.view(torch.uint8), "bf16"), entry
    raw = torch.randint(0, 256, (n_pages, PAGE, width), dtype=torch.uint8, device=device)
    if kind == "fp8":
        raw = torch.where(raw & 127 == 127, 0, raw)  # the two codes that are no numbers
    layer = view_layer(raw, kind)
    layer.scales[..., entry.scales_at : entry.scales_at + -(-latent // 128)] = 0.01
    layer.keys[..., entry.keys_at : entry.keys_at + rope] = torch.randn(n_pages, PAGE, rope, device=device)
    return layer, entry


def poison(nbytes: int, device: torch.device) -> None:
    """Fill memory that the next outputs will lie in with NaN: what a kernel does not write then shows."""
    torch.full((nbytes // 4,), torch.nan, device=device)
