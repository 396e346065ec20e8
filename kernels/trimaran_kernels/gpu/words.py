"""Codes as words of four bytes, and integer dot products with tokens in fixed point.

A chunk is 16 bytes of 4-bit codes with what belongs to them: 32 columns, 16 in the low nibbles and 16 in the
high ones, each of the two runs under one scale. 8-bit codes are cut the same way, into 16 and 16 bytes.

Instructions that Triton has no word for are written as PTX where `ASM` is set; without it plain Triton
computes the same integers, which is what the interpreter runs.
"""

from __future__ import annotations

import struct

import triton
import triton.language as tl

from trimaran_kernels.gpu.layouts import IQ4_LEVELS

CHUNK_COLUMNS = 32

FIXED_ONE: tl.constexpr = tl.constexpr(32767.0)
"""What the largest of sixteen values becomes: 16 bits hold each of them, half a unit of 2^-15 off at most."""


def _dot_ptx(codes: str) -> str:
    """Eight products of two columns, added up in order: $1 to $4 are the codes, $5 to $12 the pairs."""
    steps = ["{.reg .s32 t; mov.s32 t, 0;"]
    for pair in range(8):
        half = ("lo", "hi")[pair % 2]
        steps.append(f"dp2a.{half}.s32.{codes} t, ${5 + pair}, ${1 + pair // 2}, t;")
    return " ".join([*steps, "mov.s32 $0, t;}"])


_DOT_SIGNED: tl.constexpr = tl.constexpr(_dot_ptx("s32"))
_DOT_UNSIGNED: tl.constexpr = tl.constexpr(_dot_ptx("u32"))


@triton.jit
def code_words(planes, row, chunks, n_chunks, L: tl.constexpr, ASM: tl.constexpr):
    """Codes of chunks.

    Args:
        planes: `Planes` of a matrix [N, 32 · n_chunks].
        row: which, chunks: [C] int32, which of the row's.
        n_chunks: of a row.
        L: `Layout`.
        ASM: whether PTX may be used.

    Returns:
        Two tiles [C, 4] int32, whose bytes are the codes of a chunk's low and of its high columns: signed
        ones if the type has 8 bits or a table, else unsigned and `L.offset` too large. High ones are times
        `high_factor`.
    """
    word = tl.arange(0, 4)[None, :]
    codes = planes.codes.to(tl.pointer_type(tl.int32))
    chunk = (row * n_chunks + chunks)[:, None]
    if L.bits == 8:
        return tl.load(codes + chunk * 8 + word), tl.load(codes + chunk * 8 + 4 + word)
    both = tl.load(codes + chunk * 4 + word)
    if L.table:
        return _level_words(both, planes.levels, ASM)
    low = both & 0x0F0F0F0F
    if L.bits == 4:
        high = both & -0x0F0F0F10  # 0xF0F0F0F0: a nibble is left where it is
    else:
        high = (both >> 4) & 0x0F0F0F0F
        bits = planes.high.to(tl.pointer_type(tl.int32))
        if L.bits == 5:
            at = row * (n_chunks // 4) + chunks // 8 * 2 + chunks % 2
            bits = tl.load(bits + at[:, None] * 4 + word) >> (chunks % 8 // 2 * 2)[:, None]
            low |= (bits & 0x01010101) << 4
            high |= (bits << 3) & 0x10101010
        else:
            at = row * (n_chunks // 2) + chunks // 4 * 2 + chunks % 2
            bits = tl.load(bits + at[:, None] * 4 + word) >> (chunks % 4 // 2 * 2)[:, None]
            low |= (bits & 0x03030303) << 4
            high |= bits & 0x30303030
    return low, high


@triton.jit
def high_factor(L: tl.constexpr):
    """By how much the codes that `code_words` returns for high columns are too large."""
    return 16.0 if L.bits == 4 and not L.table else 1.0


@triton.jit
def chunk_columns(chunks, L: tl.constexpr):
    """The first of a chunk's low columns; its high ones start L.half later."""
    per_run: tl.constexpr = L.half // 16
    return chunks // per_run * (2 * L.half) + chunks % per_run * 16


@triton.jit
def to_fixed(a, b):
    """Sixteen values, a and b: [C, 8] float32 each, to unit · v with 16-bit v.

    Eight a tile: one thread then has all of a chunk's, and nothing goes through shared memory.

    Returns:
        (pairs, unit, total): pair i of eight, [C] int32, holds v of columns 2i and 2i + 1; unit [C] is NaN
        where something is not finite; total [C] is the sum of the values.
    """
    largest = tl.maximum(tl.max(tl.abs(a), 1), tl.max(tl.abs(b), 1))
    # Below this all sixteen count as zero: a weight would have to be 1e20 to make them matter.
    step = tl.where(largest > 1e-30, FIXED_ONE / largest, 0.0)
    total = tl.sum(a + b, 1)
    unit = largest * (1.0 / FIXED_ONE) + (total - total)
    return _pairs(a * step[:, None]) + _pairs(b * step[:, None]), unit, total


@triton.jit
def _pairs(scaled):
    """[C, 8] float32 within ±32767 to four words [C] of two rounded values each."""
    chunks: tl.constexpr = scaled.shape[0]
    # Adding 1.5 · 2^23 rounds to an integer and leaves it in the low bits.
    v = (scaled + 12582912.0).to(tl.int32, bitcast=True)
    even, odd = tl.split(tl.reshape(v, [chunks, 2, 2, 2]))
    first, second = tl.split((even & 0xFFFF) | (odd << 16))
    p0, p2 = tl.split(first)
    p1, p3 = tl.split(second)
    return (p0, p1, p2, p3)


@triton.jit
def dot_words(words, pairs, SIGNED: tl.constexpr, ASM: tl.constexpr):
    """Σ over sixteen columns of code · v: [C] int32.

    Args:
        words: [C, 4] of `code_words`.
        pairs: the words of `to_fixed`, [C] each.
    """
    chunks: tl.constexpr = words.shape[0]
    even, odd = tl.split(tl.reshape(words, [chunks, 2, 2]))
    w0, w2 = tl.split(even)
    w1, w3 = tl.split(odd)
    if ASM:
        return tl.inline_asm_elementwise(
            _DOT_SIGNED if SIGNED else _DOT_UNSIGNED,
            "=r,r,r,r,r,r,r,r,r,r,r,r,r",
            [
                w0,
                w1,
                w2,
                w3,
                pairs[0],
                pairs[1],
                pairs[2],
                pairs[3],
                pairs[4],
                pairs[5],
                pairs[6],
                pairs[7],
            ],
            dtype=tl.int32,
            is_pure=True,
            pack=1,
        )
    else:
        first = _dot_word(w0, pairs[0], pairs[1], SIGNED) + _dot_word(w1, pairs[2], pairs[3], SIGNED)
        return first + _dot_word(w2, pairs[4], pairs[5], SIGNED) + _dot_word(w3, pairs[6], pairs[7], SIGNED)


@triton.jit
def _dot_word(word, first, second, SIGNED: tl.constexpr):
    """Σ over the four bytes of each word and two pairs [C]."""
    sums = _byte(word, 0, SIGNED) * (first << 16 >> 16) + _byte(word, 1, SIGNED) * (first >> 16)
    return sums + _byte(word, 2, SIGNED) * (second << 16 >> 16) + _byte(word, 3, SIGNED) * (second >> 16)


@triton.jit
def _byte(words, index: tl.constexpr, SIGNED: tl.constexpr):
    """One byte of each word as int32."""
    if SIGNED:
        return words << (24 - 8 * index) >> 24
    return words >> (8 * index) & 255


def _table_words() -> tuple[str, ...]:
    """The sixteen levels as four words in hexadecimal."""
    return tuple(f"0x{word:08x}" for word in struct.unpack("<4I", struct.pack("<16b", *IQ4_LEVELS)))


# A byte permutation looks up four of eight bytes by selectors of four bits, so nibbles are selectors already:
# once in the lower eight levels, once in the upper, and then the fourth bit chooses between the two.
_LOOK_UP: tl.constexpr = tl.constexpr(
    """{{
    .reg .b32 s, t, a, b, p, q;
    and.b32 s, $2, 0x77777777;
    shr.u32 t, $2, 1;
    lop3.b32 t, t, 0x44444444, 0x32103210, 0xEA;
    prmt.b32 a, {0}, {1}, s;
    prmt.b32 b, {2}, {3}, s;
    prmt.b32 p, a, b, t;
    shr.u32 s, s, 16;
    shr.u32 t, t, 16;
    prmt.b32 a, {0}, {1}, s;
    prmt.b32 b, {2}, {3}, s;
    prmt.b32 q, a, b, t;
    prmt.b32 $0, p, q, 0x6420;
    prmt.b32 $1, p, q, 0x7531;
    }}""".format(*_table_words())
)


@triton.jit
def _level_words(both, levels, ASM: tl.constexpr):
    """Levels of the low and of the high nibbles, as signed bytes."""
    if ASM:
        return tl.inline_asm_elementwise(
            _LOOK_UP, "=r,=r,r", [both], dtype=(tl.int32, tl.int32), is_pure=True, pack=1
        )
    else:
        low = tl.zeros_like(both)
        high = tl.zeros_like(both)
        for byte in tl.static_range(4):
            code = both >> (8 * byte)
            low |= (tl.load(levels + (code & 15)).to(tl.int32) & 255) << (8 * byte)
            high |= (tl.load(levels + (code >> 4 & 15)).to(tl.int32) & 255) << (8 * byte)
        return low, high
