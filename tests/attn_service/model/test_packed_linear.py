"""Packed matrices of the attention side, against the same matrices expanded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import trimaran_kernels
from torch import Tensor
from trimaran.gguf import GGMLType, GGUFFile
from trimaran.gguf.quantize import quantize
from trimaran.synth import write_random_model
from trimaran_attn.model.linear import DenseLinear, QuantLinear
from trimaran_attn.model.mlp import MLP
from trimaran_attn.model.packed_linear import PackedLinear, can_pack
from trimaran_attn.weights import QuantTensor
from trimaran_kernels import HugePages


@pytest.fixture(scope="module")
def pool() -> trimaran_kernels.ThreadPool:
    return trimaran_kernels.ThreadPool(trimaran_kernels.usable_cpus(1))


def random_weight(kind: GGMLType, rows: int, columns: int, seed: int) -> QuantTensor:
    values = np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32) / columns**0.5
    return QuantTensor(kind, (rows, columns), quantize(kind, values).reshape(-1))


def relative_error(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


@pytest.mark.parametrize("kind", [GGMLType.Q4_K, GGMLType.Q6_K, GGMLType.Q8_0, GGMLType.Q5_0])
@pytest.mark.parametrize("n", [1, 7, 40])
def test_near_the_expanded_matrix(pool, kind: GGMLType, n: int) -> None:
    weight = random_weight(kind, 100, 512, 1)
    x = torch.randn(n, 512, generator=torch.Generator().manual_seed(n))
    got = PackedLinear(weight, pool, HugePages())(x)
    assert got.shape == (n, 100)
    assert relative_error(got, DenseLinear(weight.dequantize())(x)) < 8e-3


def test_a_view_with_strides_is_taken(pool) -> None:
    linear = PackedLinear(random_weight(GGMLType.Q8_0, 16, 64, 2), pool, HugePages())
    x = torch.randn(64, 5, generator=torch.Generator().manual_seed(0)).T
    torch.testing.assert_close(linear(x), linear(x.contiguous()), rtol=0, atol=0)


@pytest.mark.parametrize("n", [0, 1, 5, 1030])
def test_a_network_is_one_kernel(pool, n: int) -> None:
    gate, up = (random_weight(GGMLType.Q4_K, 512, 256, seed) for seed in (1, 2))
    down = random_weight(GGMLType.Q6_K, 256, 512, 3)
    linears = [PackedLinear(weight, pool, HugePages()) for weight in (gate, up, down)]
    assert linears[0].mlp_with(*linears[1:]) is not None
    network = MLP(*linears)
    x = torch.randn(n, 256, generator=torch.Generator().manual_seed(n))
    expected = MLP(*(DenseLinear(weight.dequantize()) for weight in (gate, up, down)))(x)
    got = network(x)
    assert got.shape == expected.shape
    assert n == 0 or relative_error(got, expected) < 1e-2
    for token in (0, n - 1) if n else ():
        torch.testing.assert_close(network(x[token : token + 1])[0], got[token], rtol=0, atol=0)


def test_a_network_of_mixed_matrices_is_not_fused(pool) -> None:
    gate = PackedLinear(random_weight(GGMLType.Q4_K, 256, 256, 1), pool, HugePages())
    other = QuantLinear(random_weight(GGMLType.Q4_K, 256, 256, 2), pool)
    assert gate.mlp_with(gate, other) is None
    x = torch.randn(3, 256, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(MLP(gate, gate, other)(x), other(torch.nn.functional.silu(gate(x)) * gate(x)))


def test_what_cannot_be_packed(pool) -> None:
    assert not can_pack(QuantTensor(GGMLType.F32, (8, 8), np.zeros(256, np.uint8)))
    assert can_pack(random_weight(GGMLType.Q4_0, 3, 32, 0))


def test_forgotten_tensors_read_the_same(tmp_path: Path) -> None:
    path = write_random_model(tmp_path / "m.gguf", "v3", tokenizer=False)
    with GGUFFile.open(path) as file:
        name = max(file.tensors, key=lambda name: file.tensors[name].nbytes)
        before = file.raw(name).tobytes()
        view = file.raw(name)
        file.forget(name)
        assert view.tobytes() == before
        assert file.raw(name).tobytes() == before
