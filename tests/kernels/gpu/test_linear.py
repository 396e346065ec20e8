from __future__ import annotations

import interpreted
import pytest
import torch
from trimaran.gguf import GGMLType
from trimaran_kernels.gpu import linear as dispatch
from trimaran_kernels.gpu.expand import expand_rows
from trimaran_kernels.gpu.gemm import choose_tile, count_splits, gemm
from trimaran_kernels.gpu.gemv import gemv
from trimaran_kernels.gpu.linear import quant_linear, quant_swiglu
from trimaran_kernels.gpu.reference import expand_reference, linear_reference

# Weights rounded to x's type before they are multiplied.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def tokens(n: int, width: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n)
    return torch.randn(n, width, generator=generator).to(interpreted.DEVICE, dtype)


def assert_near(got: torch.Tensor, expected: torch.Tensor) -> None:
    assert got.isfinite().all()
    error = (got.double() - expected.double()).norm() / expected.double().norm()
    assert error < TOLERANCE[got.dtype]


def test_one_token(native, make_matrix):
    matrix = make_matrix(native, 37, 768)
    x = tokens(1, 768)
    assert_near(gemv(x, matrix), linear_reference(x, matrix))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_one_token_of_half_precision(make_matrix, dtype):
    matrix = make_matrix(GGMLType.Q6_K, 5, 512)
    x = tokens(1, 512, dtype)
    assert_near(gemv(x, matrix), linear_reference(x, matrix))


def test_some_tokens(native, make_matrix):
    matrix = make_matrix(native, 70, 256)
    x = tokens(5, 256)
    assert_near(gemm(x, matrix), linear_reference(x, matrix))


def test_some_tokens_of_half_precision(make_matrix):
    matrix = make_matrix(GGMLType.Q4_K, 30, 512)
    x = tokens(5, 512, torch.float16)
    assert_near(gemm(x, matrix), linear_reference(x, matrix))


@pytest.mark.parametrize(("rows", "width", "n"), [(1, 256, 1), (65, 256, 17), (33, 2816, 1), (3, 1280, 2)])
def test_shapes(make_matrix, rows, width, n):
    matrix = make_matrix(GGMLType.Q5_K, rows, width)
    x = tokens(n, width)
    assert_near(quant_linear(x, matrix), linear_reference(x, matrix))


@pytest.mark.parametrize(("width", "n"), [(32, 1), (96, 3), (1408, 1)])
def test_widths_of_small_blocks(make_matrix, width, n):
    for type_ in (GGMLType.Q8_0, GGMLType.Q4_0, GGMLType.IQ4_NL):
        matrix = make_matrix(type_, 10, width)
        x = tokens(n, width)
        assert_near(quant_linear(x, matrix), linear_reference(x, matrix))


def test_k_is_split_when_rows_are_few(make_matrix):
    assert count_splits(4, 448, 2) == 28
    assert count_splits(300, 448, 2) == 1
    assert count_splits(1, 3, 2) == 1
    matrix = make_matrix(GGMLType.Q4_K, 16, 2048)
    x = tokens(3, 2048)
    assert_near(gemm(x, matrix), linear_reference(x, matrix))


def test_tiles_grow_with_the_batch():
    assert [choose_tile(n).tokens for n in (2, 16, 17, 64, 65, 256)] == [16, 16, 32, 64, 128, 128]


@pytest.mark.parametrize("n", [1, 4])
def test_swiglu_is_fused(make_matrix, n):
    gate, up = make_matrix(GGMLType.Q4_K, 37, 256), make_matrix(GGMLType.Q4_K, 37, 256)
    x = tokens(n, 256)
    assert_near(quant_swiglu(x, gate, up), linear_reference(x, gate, up))


def test_swiglu_of_two_types(make_matrix):
    gate, up = make_matrix(GGMLType.Q4_K, 37, 256), make_matrix(GGMLType.Q6_K, 37, 256)
    x = tokens(3, 256)
    assert_near(quant_swiglu(x, gate, up), linear_reference(x, gate, up))


def test_long_batches_are_multiplied_in_pieces(make_matrix, monkeypatch):
    monkeypatch.setattr(dispatch, "TILED_TOKENS", 4)
    monkeypatch.setattr(dispatch, "EXPANDED_BYTES", 20 * 512 * 4)
    matrix = make_matrix(GGMLType.Q6_K, 53, 512)
    x = tokens(6, 512)
    assert_near(quant_linear(x, matrix), linear_reference(x, matrix))
    assert_near(quant_swiglu(x, matrix, matrix), linear_reference(x, matrix, matrix))


def test_expanded_rows_are_the_weights(native, make_matrix):
    matrix = make_matrix(native, 11, 768)
    got = expand_rows(matrix, slice(3, 10), torch.float32)
    torch.testing.assert_close(got, expand_reference(matrix)[3:10], rtol=1e-6, atol=1e-7)


def test_no_tokens(make_matrix):
    matrix = make_matrix(GGMLType.Q8_0, 20, 64)
    assert quant_linear(tokens(0, 64), matrix).shape == (0, 20)
    assert quant_swiglu(tokens(0, 64), matrix, matrix).shape == (0, 20)


def test_a_token_does_not_disturb_its_neighbours(make_matrix):
    matrix = make_matrix(GGMLType.Q4_K, 20, 512)
    x = tokens(3, 512)
    clean = gemm(x, matrix)
    x[1] = torch.nan
    dirty = gemm(x, matrix)
    assert dirty[1].isnan().all()
    assert torch.equal(dirty[[0, 2]], clean[[0, 2]])
