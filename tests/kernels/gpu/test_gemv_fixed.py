"""One token in fixed point: against the reference, and PTX against what plain Triton computes."""

from __future__ import annotations

import interpreted
import pytest
import torch
from ptx import run_ptx
from trimaran.gguf import GGMLType
from trimaran_kernels.gpu import words
from trimaran_kernels.gpu.gemv_fixed import fixed_gemv, rows_per_program
from trimaran_kernels.gpu.layouts import IQ4_LEVELS
from trimaran_kernels.gpu.reference import expand_reference, linear_reference

# The output's own rounding; the interpreter cuts bfloat16 off.
TOLERANCE = {torch.bfloat16: 8e-3, torch.float16: 4e-4}


ROWS = rows_per_program  # what the fixture of all these tests replaces


def token(width: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    return torch.randn(1, width, generator=torch.Generator().manual_seed(width)).to(interpreted.DEVICE, dtype)


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got.double() - expected.double()).norm() / expected.double().norm())


def test_one_token(native, make_matrix):
    matrix = make_matrix(native, 5, 512)
    x = token(512)
    assert relative_error(fixed_gemv(x, matrix), linear_reference(x, matrix)) < TOLERANCE[x.dtype]


def test_bfloat16(make_matrix):
    matrix = make_matrix(GGMLType.Q6_K, 4, 256)
    x = token(256, torch.bfloat16)
    assert relative_error(fixed_gemv(x, matrix), linear_reference(x, matrix)) < TOLERANCE[x.dtype]


@pytest.mark.parametrize(("rows", "width"), [(1, 256), (3, 4352)])
def test_shapes(make_matrix, rows, width):
    """Rows that fill no program, widths that fill no step."""
    matrix = make_matrix(GGMLType.Q5_K, rows, width)
    x = token(width)
    assert relative_error(fixed_gemv(x, matrix), linear_reference(x, matrix)) < 4e-4


@pytest.mark.parametrize(
    ("type_", "width"), [(GGMLType.Q8_0, 32), (GGMLType.Q4_0, 96), (GGMLType.IQ4_NL, 1408)]
)
def test_widths_of_small_blocks(make_matrix, type_, width):
    matrix = make_matrix(type_, 4, width)
    x = token(width)
    assert relative_error(fixed_gemv(x, matrix), linear_reference(x, matrix)) < 4e-4


def test_swiglu(make_matrix):
    gate, up = make_matrix(GGMLType.Q4_K, 4, 256), make_matrix(GGMLType.Q4_K, 4, 256)
    x = token(256)
    assert relative_error(fixed_gemv(x, gate, up), linear_reference(x, gate, up)) < 1e-3


def test_values_of_all_sizes(make_matrix):
    """Each run of sixteen has a scale of its own, so neither outliers nor tiny runs spoil the others."""
    matrix = make_matrix(GGMLType.Q4_K, 8, 1024)
    x = token(1024, torch.bfloat16)
    x[:, 100:200] *= 1e-20
    x[:, 333] = 3e4
    x[:, 512:600] = 0
    expected = linear_reference(x, matrix)
    assert relative_error(fixed_gemv(x, matrix), expected) < 8e-3
    weights = expand_reference(matrix).double()
    without = x.clone()
    without[:, 333] = 0
    rest = (without.double() @ weights.T).norm()
    assert (fixed_gemv(without, matrix).double() - without.double() @ weights.T).norm() < 8e-3 * rest


@pytest.mark.parametrize("type_", [GGMLType.Q4_K, GGMLType.Q8_0, GGMLType.Q6_K])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_a_number_is_not_hidden(make_matrix, type_, bad):
    x = token(512)
    x[0, 77] = bad
    assert not fixed_gemv(x, make_matrix(type_, 4, 512)).isfinite().any()


def test_zeros(make_matrix):
    x = torch.zeros(1, 512, dtype=torch.float16, device=interpreted.DEVICE)
    assert (fixed_gemv(x, make_matrix(GGMLType.Q4_K, 4, 512)) == 0).all()


def test_there_is_work_for_a_whole_gpu():
    assert [ROWS(n) for n in (1, 576, 1536, 2048, 7168, 129280)] == [1, 1, 2, 4, 8, 8]


@pytest.mark.parametrize("kind", ["signed", "unsigned"])
def test_the_ptx_of_dot_products(kind):
    generator = torch.Generator().manual_seed(1)
    low, high = (-128, 128) if kind == "signed" else (0, 256)
    codes = torch.randint(low, high, (16,), generator=generator).tolist()
    x = torch.randint(-32767, 32768, (16,), generator=generator).tolist()
    values = {f"${1 + i}": pack(codes[4 * i : 4 * i + 4], 8) for i in range(4)}
    values |= {f"${5 + i}": pack(x[2 * i : 2 * i + 2], 16) for i in range(8)}
    text = words._DOT_SIGNED.value if kind == "signed" else words._DOT_UNSIGNED.value
    assert run_ptx(text, values)["$0"] == sum(a * b for a, b in zip(codes, x, strict=True))


def test_the_ptx_of_the_table():
    for word in (0x76543210, 0xFEDCBA98, 0x0F1E2D3C, 0x80808080):
        registers = run_ptx(words._LOOK_UP.value, {"$2": word})
        nibbles = [word >> (4 * i) & 15 for i in range(8)]
        assert registers["$0"] == pack([IQ4_LEVELS[n] for n in nibbles[0::2]], 8)
        assert registers["$1"] == pack([IQ4_LEVELS[n] for n in nibbles[1::2]], 8)


def pack(numbers: list[int], bits: int) -> int:
    return sum((number & (1 << bits) - 1) << (bits * i) for i, number in enumerate(numbers))
