"""Codes of four weights a word to 16-bit floats, all of them exact, in about one instruction each.

A byte under 0x43 is the bfloat16 128 + byte (of seven bits), and under 0x64 the float16 1024 + byte: a byte
permutation makes two weights, and one addition takes the 128 or 1024 off again. Signed bytes are put together
from their low seven bits and their sign, and a table's levels from their two halves. Fifth and sixth bits
become floats of their own, which are multiplied beside the others: Triton carries a tile from one load into a
multiplication without detours, but not a tile from two.

Without PTX, in the interpreter, plain Triton computes the same.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from trimaran_kernels.gpu.layouts import IQ4_LEVELS, Layout
from trimaran_kernels.gpu.target import interprets


class Unpacking(NamedTuple):
    """How codes become floats of one type; a compile-time constant.

    Attributes:
        codes: PTX from the word $4 of nibbles to the low ones' floats $0, $1 and the high ones' $2, $3; with
            eight bits from the word $2 of signed bytes to $0, $1. Empty in the interpreter and for float32.
        bits: the same for fifth and sixth bits: $4 their word, to be shifted by any byte of $5.
        bias: what codes are left too large by, in types with mins: a min's term takes it off at no cost.
    """

    codes: str
    bits: str
    bias: int


class _Form(NamedTuple):
    """A 16-bit type in PTX: two of it in a word, the byte above small integers, and what that makes of 0."""

    dtype: torch.dtype
    name: str
    prefix: str
    base: int

    def twice(self, value: int) -> str:
        """The bits of a pair of equal values."""
        bits = int(torch.tensor(value, dtype=self.dtype).view(torch.int16)) & 0xFFFF
        return f"0x{bits:04X}{bits:04X}"


_FORMS = {
    torch.bfloat16: _Form(torch.bfloat16, "bf16x2", "43", 128),
    torch.float16: _Form(torch.float16, "f16x2", "64", 1024),
}
_BIAS = 128


def choose_unpacking(layout: Layout, dtype: torch.dtype) -> Unpacking:
    """For a matrix and tokens of a type; float32 has no room for a bias."""
    return _unpacking(layout, dtype, in_ptx=not interprets())


@cache  # a launch for each matrix of each step asks
def _unpacking(layout: Layout, dtype: torch.dtype, *, in_ptx: bool) -> Unpacking:
    parts = 2 if layout.bits in (5, 6) else 1
    kept = _BIAS if layout.mins and dtype != torch.float32 else 0
    form = _FORMS.get(dtype)
    if form is None or not in_ptx:
        return Unpacking("", "", parts * kept)
    return Unpacking(_code_ptx(layout, form, kept), _bit_ptx(layout, form, kept), parts * kept)


def _code_ptx(layout: Layout, form: _Form, kept: int) -> str:
    if layout.bits == 8:
        return _body(_signed(form))
    if layout.table:
        return _body(_levels(form))
    offset = layout.offset if layout.bits == 4 else 0
    nibbles = ["and.b32 l, $4, 0x0F0F0F0F;", "shr.u32 h, $4, 4;", "and.b32 h, h, 0x0F0F0F0F;"]
    return _body([*nibbles, *_unsigned(form, form.base + offset - kept)])


def _bit_ptx(layout: Layout, form: _Form, kept: int) -> str:
    """Bits at their places in a code, 16 or 16 and 32; the offset of the whole code goes with them."""
    if layout.bits not in (5, 6):
        return ""
    mask = "0x10101010" if layout.bits == 5 else "0x30303030"
    high = "shl.b32 h, h, 3;" if layout.bits == 5 else ""
    steps = ["and.b32 s, $5, 7;", "shr.u32 h, $4, s;", "shl.b32 l, h, 4;", high]
    steps += [f"and.b32 l, l, {mask};", f"and.b32 h, h, {mask};"]
    return _body([*steps, *_unsigned(form, form.base + layout.offset - kept)])


def _body(steps: list[str]) -> str:
    return " ".join(["{.reg .b32 l, h, s, t, u, v, a, b, c, d;", *steps, "}"])


def _unsigned(form: _Form, excess: int) -> list[str]:
    """$0 to $3 from the bytes of l and h, all below 128, less `excess` of what the prefix makes of them."""
    steps = [
        f"prmt.b32 ${out + half}, {word}, 0x{form.prefix * 4}, {selector};"
        for out, word in ((0, "l"), (2, "h"))
        for half, selector in enumerate(("0x4140", "0x4342"))
    ]
    if excess:
        steps += [f"mov.b32 u, {form.twice(1)};", f"mov.b32 v, {form.twice(-excess)};"]
        steps += [f"fma.rn.{form.name} ${out}, ${out}, u, v;" for out in range(4)]
    return steps


def _signed(form: _Form) -> list[str]:
    """$0 and $1 from the signed bytes of $2: (base + low seven bits) - (base + 128 · sign)."""
    steps = ["and.b32 l, $2, 0x7F7F7F7F;", "and.b32 h, $2, 0x80808080;", f"mov.b32 v, {form.twice(-1)};"]
    for out, selector in enumerate(("0x4140", "0x4342")):
        steps += [
            f"prmt.b32 ${out}, l, 0x{form.prefix * 4}, {selector};",
            f"prmt.b32 t, h, 0x{form.prefix * 4}, {selector};",
            f"fma.rn.{form.name} ${out}, t, v, ${out};",
        ]
    return steps


def _levels(form: _Form) -> list[str]:
    """$0 to $3 from the nibbles of $4, each half of a level looked up by itself.

    A byte permutation looks up four of eight bytes by selectors of four bits, so nibbles are selectors
    already: once in the lower eight levels, once in the upper; the fourth bit chooses between the two.
    """
    raw = torch.tensor(IQ4_LEVELS, dtype=form.dtype).view(torch.uint8).view(16, 2).T.contiguous()
    tables = [[f"0x{int(word) & 0xFFFFFFFF:08X}" for word in half.view(torch.int32)] for half in raw]
    steps = [
        "and.b32 s, $4, 0x77777777;",
        "shr.u32 t, $4, 1;",
        "lop3.b32 t, t, 0x44444444, 0x32103210, 0xEA;",
    ]
    for first in range(2):
        for word, table in zip(("c", "d"), tables, strict=True):
            steps += [
                f"prmt.b32 a, {table[0]}, {table[1]}, s;",
                f"prmt.b32 b, {table[2]}, {table[3]}, s;",
                f"prmt.b32 {word}, a, b, t;",
            ]
        steps += [f"prmt.b32 ${first}, c, d, 0x6240;", f"prmt.b32 ${2 + first}, c, d, 0x7351;"]
        if first == 0:
            steps += ["shr.u32 s, s, 16;", "shr.u32 t, t, 16;"]
    return steps


@triton.jit
def unpack_codes(planes, rows, units, n_units, x, L: tl.constexpr, U: tl.constexpr):
    """Codes of units of rows as floats, in low and in high columns; of 5 and 6-bit codes, their nibbles.

    Args:
        planes: `Planes` of a matrix with rows of n_units units.
        rows: [R] int64.
        units: [U] int32, as of `decode_units`.
        x: a tile of the result's type.
        L: `Layout`.
        U: `Unpacking`.

    Returns:
        Two tiles [U, R, L.unit], without offset and with U.bias.
    """
    unit: tl.constexpr = L.unit
    i = tl.arange(0, unit)[None, None, :]
    at = (rows[:, None] * n_units + units[None, :])[:, :, None]
    if L.bits == 8:
        low = _from_bytes(tl.load(planes.codes + at * (2 * unit) + i), x, U)
        high = _from_bytes(tl.load(planes.codes + at * (2 * unit) + unit + i), x, U)
    else:
        low, high = _from_nibbles(tl.load(planes.codes + at * unit + i), planes.levels, x, L, U)
    return tl.permute(low, [1, 0, 2]), tl.permute(high, [1, 0, 2])


@triton.jit
def unpack_bits(planes, rows, units, n_units, x, L: tl.constexpr, U: tl.constexpr):
    """What is missing of 5 and 6-bit codes: their high bits, less the offset; else as `unpack_codes`.

    units: four, from a multiple of four on: they share 32 bytes, which hold the fifth bits of four times 32
    codes, or the fifth and sixth ones of four times 16.
    """
    unit: tl.constexpr = L.unit
    fourth = tl.arange(0, 4)
    byte = (fourth * unit % 32)[:, None] + tl.arange(0, unit)[None, :]
    run = rows[:, None] * (n_units // 4) + (units // 4)[None, :]
    bits = tl.load(planes.high + run[:, :, None] * 32 + byte[None, :, :])
    # Loaded, not computed: else Triton sends the result through shared memory on its way to the product.
    shift = tl.load(planes.levels + units % 4)[None, :, None]
    if U.bits == "":
        wide = bits.to(tl.int32) >> shift
        kept: tl.constexpr = U.bias // 2 - L.offset
        if L.bits == 5:
            low = ((wide & 1) << 4) + kept
            high = ((wide & 2) << 3) + kept
        else:
            low = ((wide & 3) << 4) + kept
            high = (wide & 48) + kept
        low = low.to(tl.float32).to(x.dtype)
        high = high.to(tl.float32).to(x.dtype)
    else:
        shifts = tl.broadcast_to(shift.to(tl.uint8), bits.shape)
        low, high = tl.inline_asm_elementwise(
            U.bits, "=r,=r,=r,=r,r,r", [bits, shifts], dtype=(x.dtype, x.dtype), is_pure=True, pack=4
        )
    return tl.permute(low, [1, 0, 2]), tl.permute(high, [1, 0, 2])


@triton.jit
def _from_bytes(codes, x, U: tl.constexpr):
    if U.codes == "":
        return codes.to(tl.float32).to(x.dtype)
    else:
        return tl.inline_asm_elementwise(U.codes, "=r,=r,r", [codes], dtype=x.dtype, is_pure=True, pack=4)


@triton.jit
def _from_nibbles(both, levels, x, L: tl.constexpr, U: tl.constexpr):
    if U.codes == "":
        low = (both & 15).to(tl.int32)
        high = (both >> 4).to(tl.int32)
        if L.table:
            return tl.load(levels + low).to(x.dtype), tl.load(levels + high).to(x.dtype)
        else:
            kept: tl.constexpr = U.bias - L.offset if L.bits == 4 else U.bias // 2
            return (low + kept).to(tl.float32).to(x.dtype), (high + kept).to(tl.float32).to(x.dtype)
    else:
        return tl.inline_asm_elementwise(
            U.codes, "=r,=r,=r,=r,r", [both], dtype=(x.dtype, x.dtype), is_pure=True, pack=4
        )
