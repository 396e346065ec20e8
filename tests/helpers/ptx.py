"""The few instructions of PTX that the GPU kernels use, as the manual defines them (PTX ISA §9.7)."""

from __future__ import annotations

import re

import torch

_FLOATS = {"bf16x2": torch.bfloat16, "f16x2": torch.float16}


def run_ptx(text: str, values: dict[str, int]) -> dict[str, int]:
    """All registers after a straight run of instructions, which start from `values`."""
    registers = dict(values)
    for name, operands in re.findall(r"([a-z][a-z0-9.]+) ([^;{}]+);", text):
        if name.startswith("reg"):
            continue
        target, *sources = (operand.strip() for operand in operands.split(","))
        numbers = [int(s, 0) if s[0].isdigit() else registers[s] for s in sources]
        registers[target] = _compute(name, *numbers)
    return registers


def _compute(name: str, a: int, *rest: int) -> int:
    operation, _, kind = name.partition(".")
    match operation:
        case "mov":
            return a
        case "and":
            return a & rest[0]
        case "or":
            return a | rest[0]
        case "shr":
            return a >> rest[0]
        case "shl":
            return a << rest[0] & 0xFFFFFFFF
        case "lop3":
            assert rest[2] == 0xEA  # (a & b) | c
            return a & rest[0] | rest[1]
        case "prmt":
            return _permute(a, *rest)
        case "fma":
            return _fma(kind.removeprefix("rn."), a, *rest)
    assert name.startswith("dp2a"), name
    return _dot(name, a, *rest)


def _permute(a: int, b: int, selectors: int) -> int:
    table = (b << 32 | a).to_bytes(8, "little")
    picked = []
    for nibble in range(4):
        selector = selectors >> (4 * nibble) & 15
        byte = table[selector & 7]
        picked.append(255 * (byte >> 7) if selector & 8 else byte)
    return int.from_bytes(bytes(picked), "little")


def _fma(kind: str, *numbers: int) -> int:
    """Two floats at a time; what comes out must be exact, so its rounding is not gone into."""
    dtype = _FLOATS[kind]
    raw = bytearray(b"".join(number.to_bytes(4, "little") for number in numbers))
    a, b, c = torch.frombuffer(raw, dtype=dtype).double().view(3, 2)
    exact = a * b + c
    rounded = exact.to(dtype)
    assert torch.equal(rounded.double(), exact)
    return int.from_bytes(rounded.view(torch.uint8).numpy().tobytes(), "little")


def _dot(name: str, a: int, word: int, total: int) -> int:
    _, half, kind, codes = name.split(".")
    assert (name[:4], kind) == ("dp2a", "s32")
    for i in range(2):
        byte = word >> (8 * i + (16 if half == "hi" else 0)) & 255
        total += _signed(a >> 16 * i, 16) * (_signed(byte, 8) if codes == "s32" else byte)
    return total


def _signed(number: int, bits: int) -> int:
    number &= (1 << bits) - 1
    return number - (1 << bits) if number >> (bits - 1) else number
