"""Codes of four weights a word to 16-bit floats, all of them exact, four weights an instruction or two.

A byte under 0x43 is the bfloat16 128 + byte (of seven bits), and under 0x64 the float16 1024 + byte: a byte
permutation makes two weights, and one addition takes the 128 or 1024 off again. Signed bytes are put together
from their low seven bits and their sign. Without PTX, in the interpreter, plain Triton computes the same.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from trimaran_kernels.gpu.layouts import Layout
from trimaran_kernels.gpu.target import interprets
from trimaran_kernels.gpu.words import look_up_ptx

BIAS = 128
"""What codes of types with mins are left too large by: the min's term takes it off, at no cost."""


def bias_of(layout: Layout, dtype: torch.dtype) -> int:
    """By how much `unpack_units` leaves codes too large, for tokens of a type; float32 has no room for it."""
    return BIAS if layout.mins and dtype != torch.float32 else 0


def unpack_ptx(layout: Layout, dtype: torch.dtype) -> str:
    """PTX for `unpack_units`, or "" in the interpreter and for float32.

    $0 and $1 are the low codes' floats, $2 and $3 the high ones'. What follows: the word of codes; then one
    of high bits and one whose bytes say how far to shift them; with eight bits just the codes and no $2, $3.
    """
    if interprets() or dtype == torch.float32:
        return ""
    prefix, one, name = (
        ("43", "3F803F80", "bf16x2") if dtype == torch.bfloat16 else ("64", "3C003C00", "f16x2")
    )
    base = 128 if dtype == torch.bfloat16 else 1024
    if layout.bits == 8:
        return _body(_signed("$2", 0, prefix, one, name))
    if layout.table:
        look_up = look_up_ptx("$4", "l", "h")
        return _body([look_up, *_signed("l", 0, prefix, one, name), *_signed("h", 2, prefix, one, name)])
    steps = ["and.b32 l, $4, 0x0F0F0F0F;", "shr.u32 h, $4, 4;", "and.b32 h, h, 0x0F0F0F0F;"]
    if layout.bits > 4:
        steps += _fifth_and_sixth(layout.bits)
    excess = base + layout.offset - bias_of(layout, dtype)
    return _body(
        [*steps, *_unsigned("l", 0, prefix, one, name, excess), *_unsigned("h", 2, prefix, one, name, excess)]
    )


def _body(steps: list[str]) -> str:
    return " ".join(["{.reg .b32 l, h, s, t, u, v, w, m, n;", *steps, "}"])


def _fifth_and_sixth(bits: int) -> list[str]:
    """Add the high bits in $5, shifted by the bytes of $6, to l and h."""
    low, high = ("0x10101010", "0x10101010") if bits == 5 else ("0x30303030", "0x30303030")
    aligned = "shl.b32 u, t, 3;" if bits == 5 else "mov.b32 u, t;"
    return [
        "and.b32 s, $6, 7;",
        "shr.u32 t, $5, s;",
        "shl.b32 v, t, 4;",
        f"lop3.b32 l, v, {low}, l, 0xEA;",
        aligned,
        f"lop3.b32 h, u, {high}, h, 0xEA;",
    ]


def _unsigned(word: str, out: int, prefix: str, one: str, name: str, excess: int) -> list[str]:
    """${out} and ${out + 1} from a word of bytes below 128, `excess` less than under the prefix."""
    filler = f"0x{prefix * 4}"
    steps = [
        f"prmt.b32 ${out}, {word}, {filler}, 0x4140;",
        f"prmt.b32 ${out + 1}, {word}, {filler}, 0x4342;",
    ]
    if excess:
        steps += [f"mov.b32 m, 0x{one};", f"mov.b32 n, {_twice(-excess, name)};"]
        steps += [f"fma.rn.{name} ${o}, ${o}, m, n;" for o in (out, out + 1)]
    return steps


def _signed(word: str, out: int, prefix: str, one: str, name: str) -> list[str]:
    """${out} and ${out + 1} from a word of signed bytes: (base + low seven bits) - (base + 128 · sign)."""
    filler, minus_one = f"0x{prefix * 4}", f"0x{int(one, 16) | 0x80008000:08X}"
    steps = [
        f"and.b32 m, {word}, 0x7F7F7F7F;",
        f"and.b32 n, {word}, 0x80808080;",
        f"mov.b32 v, {minus_one};",
    ]
    for o, selector in ((out, "0x4140"), (out + 1, "0x4342")):
        steps += [
            f"prmt.b32 ${o}, m, {filler}, {selector};",
            f"prmt.b32 w, n, {filler}, {selector};",
            f"fma.rn.{name} ${o}, w, v, ${o};",
        ]
    return steps


def _twice(value: int, name: str) -> str:
    """The bits of two equal floats."""
    dtype = torch.bfloat16 if name == "bf16x2" else torch.float16
    bits = int(torch.tensor(value, dtype=dtype).view(torch.int16)) & 0xFFFF
    return f"0x{bits:04X}{bits:04X}"


@triton.jit
def unpack_units(planes, rows, units, n_units, x, L: tl.constexpr, BIAS: tl.constexpr, PTX: tl.constexpr):
    """Codes of units of rows as floats, in low and in high columns.

    Args:
        planes: `Planes` of a matrix with rows of n_units units.
        rows: [R] int64.
        units: [U] int32, as of `decode_units`, U consecutive ones that start at a multiple of U, the last
            perhaps repeated: four of them share their bytes of high bits, if the type has such.
        x: a tile of the result's type: 16 bits, or float32 without PTX.
        BIAS: `bias_of`.
        PTX: `unpack_ptx`.

    Returns:
        Two tiles [U, R, L.unit], without offset and BIAS too large.
    """
    unit: tl.constexpr = L.unit
    i = tl.arange(0, unit)
    if L.bits == 8:
        at = (rows[:, None] * n_units + units[None, :])[:, :, None] * (2 * unit) + i[None, None, :]
        low = _from_bytes(tl.load(planes.codes + at), x, PTX)
        high = _from_bytes(tl.load(planes.codes + at + unit), x, PTX)
    else:
        at = (rows[:, None] * n_units + units[None, :])[:, :, None] * unit + i[None, None, :]
        both = tl.load(planes.codes + at)
        if L.bits == 4:
            low, high = _from_nibbles(both, planes.levels, x, L, BIAS, PTX)
        else:
            low, high = _with_high_bits(both, planes.high, rows, units, n_units, x, L, BIAS, PTX)
    return tl.permute(low, [1, 0, 2]), tl.permute(high, [1, 0, 2])


@triton.jit
def _from_bytes(codes, x, PTX: tl.constexpr):
    if PTX == "":
        return codes.to(tl.float32).to(x.dtype)
    else:
        return tl.inline_asm_elementwise(PTX, "=r,=r,r", [codes], dtype=x.dtype, is_pure=True, pack=4)


@triton.jit
def _from_nibbles(both, levels, x, L: tl.constexpr, BIAS: tl.constexpr, PTX: tl.constexpr):
    if PTX == "":
        low = (both & 15).to(tl.int32)
        high = (both >> 4).to(tl.int32)
        if L.table:
            return tl.load(levels + low).to(x.dtype), tl.load(levels + high).to(x.dtype)
        else:
            return _centred(low, x, L, BIAS), _centred(high, x, L, BIAS)
    else:
        return tl.inline_asm_elementwise(
            PTX, "=r,=r,=r,=r,r", [both], dtype=(x.dtype, x.dtype), is_pure=True, pack=4
        )


@triton.jit
def _centred(codes, x, L: tl.constexpr, BIAS: tl.constexpr):
    return (codes + (BIAS - L.offset)).to(tl.float32).to(x.dtype)


@triton.jit
def _with_high_bits(
    both, high_plane, rows, units, n_units, x, L: tl.constexpr, BIAS: tl.constexpr, PTX: tl.constexpr
):
    # Four units share 32 bytes: fifth bits of four times 32 codes, or fifth and sixth ones of four times 16.
    unit: tl.constexpr = L.unit
    i = tl.arange(0, unit)
    byte = units // 4 * 32 + units * unit % 32
    at = (rows * (n_units // 4 * 32))[:, None, None] + byte[None, :, None] + i[None, None, :]
    bits = tl.load(high_plane + at)
    shift = (units % 4 * unit // 32 * 2)[None, :, None]
    if PTX == "":
        wide = bits.to(tl.int32) >> shift
        if L.bits == 5:
            low = (both & 15).to(tl.int32) + ((wide & 1) << 4)
            high = (both >> 4).to(tl.int32) + ((wide & 2) << 3)
        else:
            low = (both & 15).to(tl.int32) + ((wide & 3) << 4)
            high = (both >> 4).to(tl.int32) + (wide & 48)
        return _centred(low, x, L, BIAS), _centred(high, x, L, BIAS)
    else:
        shifts = tl.broadcast_to(shift.to(tl.uint8), bits.shape)
        return tl.inline_asm_elementwise(
            PTX, "=r,=r,=r,=r,r,r,r", [both, bits, shifts], dtype=(x.dtype, x.dtype), is_pure=True, pack=4
        )
