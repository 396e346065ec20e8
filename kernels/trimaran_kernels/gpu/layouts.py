"""How quantised matrices lie in GPU memory: the planes of a GGUF type, and how a kernel reads them.

A GGUF block mixes 4-bit codes, high bits and scales in 18 to 210 bytes, which no GPU loads well. At load time
a matrix [N, K] is split into planes, one tensor for each kind of bits. Codes and high bits stay byte for byte
as the file has them; 6-bit scales become bytes of their own. No weight changes.

Weight (n, k) = scale · code − min, where scale = super · (sub-scale, if the type has them).
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from trimaran.gguf import GGMLType


class Planes(NamedTuple):
    """The tensors of one matrix; `codes` stands in for a plane that the type lacks.

    Attributes:
        codes: [N, K/2] uint8, two 4-bit codes a byte, or [N, K] int8.
        high: [N, K/8] or [N, K/4] uint8, the fifth, or fifth and sixth, bits.
        scales: [N, K/group] uint8 or int8, sub-scales.
        mins: [N, K/group] uint8, sub-scales of what is subtracted.
        supers: [N, K/block] float16.
        super_mins: [N, K/block] float16, on `mins`.
        levels: [16] float32, the values of 4-bit codes of a type with a table; of 5 and 6-bit types [4]
            int32, how far to shift the bytes that four units share to the right, for each unit's high bits.
    """

    codes: Tensor
    high: Tensor
    scales: Tensor
    mins: Tensor
    supers: Tensor
    super_mins: Tensor
    levels: Tensor


class Layout(NamedTuple):
    """What a kernel must know to read planes; a compile-time constant.

    Attributes:
        bits: of a code: 4, 5, 6 or 8.
        half: a run of 2·half columns shares `half` bytes of codes: column c in the low nibble of byte c,
            column c + half in the high one.
        unit: so many consecutive codes have one scale.
        group: columns under one sub-scale.
        block: columns under one super-scale.
        offset: subtracted from a code.
        table: codes are indices into `levels`.
        sub_scales, mins: whether the type has them.
    """

    bits: int
    half: int
    unit: int
    group: int
    block: int
    offset: int = 0
    table: bool = False
    sub_scales: bool = False
    mins: bool = False


LAYOUTS: dict[GGMLType, Layout] = {
    GGMLType.Q4_0: Layout(4, half=16, unit=16, group=32, block=32, offset=8),
    GGMLType.IQ4_NL: Layout(4, half=16, unit=16, group=32, block=32, table=True),
    GGMLType.Q8_0: Layout(8, half=16, unit=16, group=32, block=32),
    GGMLType.Q4_K: Layout(4, half=32, unit=32, group=32, block=256, sub_scales=True, mins=True),
    GGMLType.Q5_K: Layout(5, half=32, unit=32, group=32, block=256, sub_scales=True, mins=True),
    GGMLType.Q6_K: Layout(6, half=64, unit=16, group=16, block=256, offset=32, sub_scales=True),
    GGMLType.IQ4_XS: Layout(4, half=16, unit=16, group=32, block=256, table=True, sub_scales=True),
}
"""Types that kernels read as they are."""

IQ4_LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""Values of IQ4_NL's and IQ4_XS's codes."""
