"""The device function that turns planes into weights; every kernel over quantised matrices is built on it."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def decode_units(planes, rows, units, live, width, L: tl.constexpr):
    """Decode units of rows: the weights of their low and of their high nibbles.

    Args:
        planes: `Planes` of a matrix [N, width].
        rows: [R] int64.
        units: [U] int32, runs of L.unit bytes of codes; unit u holds columns low_columns(u) + [0, L.unit) and
            the columns L.half after them.
        live: [R, U] bool, which of them exist.
        width: K.
        L: `Layout`.

    Returns:
        Two tiles [R, U, L.unit] float32; 0 where not live.
    """
    unit: tl.constexpr = L.unit
    half: tl.constexpr = L.half
    i = tl.arange(0, unit)
    first = units * unit
    columns = low_columns(units, L)
    mask = live[:, :, None]
    if L.bits == 8:
        at = (rows[:, None] * width + columns[None, :])[:, :, None] + i[None, None, :]
        low = tl.load(planes.codes + at, mask=mask, other=0).to(tl.float32)
        high = tl.load(planes.codes + at + half, mask=mask, other=0).to(tl.float32)
    else:
        at = (rows[:, None] * (width // 2) + first[None, :])[:, :, None] + i[None, None, :]
        both = tl.load(planes.codes + at, mask=mask, other=0)
        low_code = (both & 15).to(tl.int32)
        high_code = (both >> 4).to(tl.int32)
        if L.bits > 4:
            bits = _high_bits(planes, rows, first, mask, width, L)
            shift = (2 * (first % _codes_per_run(L) // 32))[None, :, None]
            if L.bits == 5:
                low_code += (bits >> shift & 1) << 4
                high_code += (bits >> (shift + 1) & 1) << 4
            else:
                low_code += (bits >> shift & 3) << 4
                high_code += (bits >> (shift + 4) & 3) << 4
        if L.table:
            low = tl.load(planes.levels + low_code)
            high = tl.load(planes.levels + high_code)
        else:
            low = (low_code - L.offset).to(tl.float32)
            high = (high_code - L.offset).to(tl.float32)
    low = _scaled(low, planes, rows, columns, live, width, L)
    high = _scaled(high, planes, rows, columns + half, live, width, L)
    return low, high


@triton.jit
def low_columns(units, L: tl.constexpr):
    """The first column in the low nibbles of each unit."""
    first = units * L.unit
    return first // L.half * (2 * L.half) + first % L.half


@triton.jit
def _codes_per_run(L: tl.constexpr):
    """Bytes of codes that share 32 bytes of high bits."""
    if L.bits == 5:
        return 128
    return 64


@triton.jit
def _high_bits(planes, rows, first, mask, width, L: tl.constexpr):
    """[R, U, L.unit] int32: the bytes that hold the high bits of each byte of codes."""
    per_run = _codes_per_run(L)
    i = tl.arange(0, L.unit)
    byte = first // per_run * 32 + first % 32
    stride = width // 8 * (L.bits - 4)
    at = (rows[:, None] * stride + byte[None, :])[:, :, None] + i[None, None, :]
    return tl.load(planes.high + at, mask=mask, other=0).to(tl.int32)


@triton.jit
def _scaled(codes, planes, rows, columns, live, width, L: tl.constexpr):
    """Apply scales and mins; columns: [U], the first of each unit."""
    block = rows[:, None] * (width // L.block) + (columns // L.block)[None, :]
    scale = tl.load(planes.supers + block, mask=live, other=0.0).to(tl.float32)
    group = rows[:, None] * (width // L.group) + (columns // L.group)[None, :]
    if L.sub_scales:
        scale *= tl.load(planes.scales + group, mask=live, other=0).to(tl.float32)
    weights = codes * scale[:, :, None]
    if L.mins:
        least = tl.load(planes.super_mins + block, mask=live, other=0.0).to(tl.float32)
        least *= tl.load(planes.mins + group, mask=live, other=0).to(tl.float32)
        weights -= least[:, :, None]
    return weights
