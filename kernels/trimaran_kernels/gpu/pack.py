"""From GGUF blocks to planes, on whatever device the bytes are."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from trimaran.gguf import GGMLType

from trimaran_kernels.gpu.layouts import IQ4_LEVELS, LAYOUTS, Layout, Planes


def pack(type_: GGMLType, raw: Tensor, shape: tuple[int, int]) -> Planes:
    """Split a matrix into planes.

    Args:
        type_: one of `LAYOUTS`.
        raw: uint8, the matrix's bytes in the file.
        shape: [N, K]; K is a multiple of the type's block.

    Returns:
        Contiguous planes on raw's device.
    """
    rows, columns = shape
    blocks = raw.view(rows, columns // type_.block_size, type_.type_size)
    parts = _SPLITTERS[type_](blocks)
    planes = {name: plane.reshape(rows, -1).contiguous() for name, plane in parts.items()}
    absent = dict.fromkeys(Planes._fields, planes["codes"])
    return Planes(**{**absent, **planes, "levels": _table(LAYOUTS[type_]).to(raw.device)})


def _table(layout: Layout) -> Tensor:
    if layout.bits in (5, 6):
        return torch.arange(4, dtype=torch.int32) * layout.unit // 32 * 2
    return torch.tensor(IQ4_LEVELS, dtype=torch.float32)


def _halves(raw: Tensor) -> Tensor:
    """Bytes [..., 2] as float16 [...]."""
    return raw.contiguous().view(torch.float16)


def _q4_0(blocks: Tensor) -> dict[str, Tensor]:
    """struct { f16 d; u8 qs[16]; }, and IQ4_NL's."""
    return {"supers": _halves(blocks[..., :2]), "codes": blocks[..., 2:]}


def _q8_0(blocks: Tensor) -> dict[str, Tensor]:
    """struct { f16 d; i8 qs[32]; }."""
    return {"supers": _halves(blocks[..., :2]), "codes": blocks[..., 2:].contiguous().view(torch.int8)}


def _q4_k(blocks: Tensor) -> dict[str, Tensor]:
    """struct { f16 d, dmin; u8 scales[12], qs[128]; }."""
    scales, mins = _six_bit_pairs(blocks[..., 4:16])
    return {
        "supers": _halves(blocks[..., :2]),
        "super_mins": _halves(blocks[..., 2:4]),
        "scales": scales,
        "mins": mins,
        "codes": blocks[..., 16:],
    }


def _q5_k(blocks: Tensor) -> dict[str, Tensor]:
    """Q4_K's head, then u8 qh[32], qs[128]."""
    return {**_q4_k(blocks), "high": blocks[..., 16:48], "codes": blocks[..., 48:]}


def _q6_k(blocks: Tensor) -> dict[str, Tensor]:
    """struct { u8 ql[128], qh[64]; i8 scales[16]; f16 d; }."""
    return {
        "codes": blocks[..., :128],
        "high": blocks[..., 128:192],
        "scales": blocks[..., 192:208].contiguous().view(torch.int8),
        "supers": _halves(blocks[..., 208:]),
    }


def _iq4_xs(blocks: Tensor) -> dict[str, Tensor]:
    """struct { f16 d; u16 scales_h; u8 scales_l[4], qs[128]; }: sub-scales of 4 low, 2 high bits, less 32."""
    low = torch.stack((blocks[..., 4:8] & 15, blocks[..., 4:8] >> 4), -1).flatten(-2)
    shifts = torch.arange(0, 8, 2, dtype=torch.uint8, device=blocks.device)
    high = (blocks[..., 2:4, None] >> shifts & 3).flatten(-2)
    scales = (low | high << 4).to(torch.int8) - 32
    return {"supers": _halves(blocks[..., :2]), "scales": scales, "codes": blocks[..., 8:]}


def _six_bit_pairs(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Eight 6-bit scales and eight 6-bit mins, [..., 8] uint8 each, from 12 bytes.

    The first four of each are in bytes 0-3 and 4-7; the others' low nibbles in bytes 8-11, and their high
    bits in the top two bits of bytes 0-7.
    """
    first, second, third = packed[..., :4], packed[..., 4:8], packed[..., 8:12]
    scales = torch.cat((first & 63, third & 15 | first >> 6 << 4), -1)
    mins = torch.cat((second & 63, third >> 4 | second >> 6 << 4), -1)
    return scales, mins


_SPLITTERS: dict[GGMLType, Callable[[Tensor], dict[str, Tensor]]] = {
    GGMLType.Q4_0: _q4_0,
    GGMLType.IQ4_NL: _q4_0,
    GGMLType.Q8_0: _q8_0,
    GGMLType.Q4_K: _q4_k,
    GGMLType.Q5_K: _q5_k,
    GGMLType.Q6_K: _q6_k,
    GGMLType.IQ4_XS: _iq4_xs,
}
