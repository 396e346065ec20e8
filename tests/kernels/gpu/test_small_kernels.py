"""Norms, rotations and the gate, each against torch."""

from __future__ import annotations

import interpreted
import pytest
import torch
from torch.nn.functional import rms_norm as torch_rms_norm
from trimaran.spec import MoeSpec
from trimaran_attn.model.gate import Gate
from trimaran_attn.model.rope import rotate
from trimaran_kernels.gpu import gate as gate_module
from trimaran_kernels.gpu.gate import GateRule, route, route_logits
from trimaran_kernels.gpu.norm import add_rms_norm, rms_norm
from trimaran_kernels.gpu.rope import rotate_pairs

DEVICE = interpreted.DEVICE
EPS = 1e-6


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


@pytest.mark.parametrize(("rows", "width"), [(1, 7168), (3, 1), (5, 1536), (512, 96), (0, 64)])
def test_norm(rows, width):
    x, weight = randn(rows, width), randn(width, seed=1)
    torch.testing.assert_close(rms_norm(x, weight, EPS), torch_rms_norm(x, (width,), weight, EPS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_sum_and_norm(dtype):
    x, delta, weight = randn(3, 200, dtype=dtype), randn(3, 200, seed=1, dtype=dtype), randn(200, seed=2)
    before = x.clone()
    total, normed = add_rms_norm(x, delta, weight, EPS)
    assert torch.equal(total, x + delta)
    assert torch.equal(x, before)
    expected = torch_rms_norm(total.float(), (200,), weight, EPS).to(dtype)
    torch.testing.assert_close(normed, expected)


def test_norm_of_rows_that_lie_apart():
    x, weight = randn(4, 300), randn(96, seed=1)
    torch.testing.assert_close(
        rms_norm(x[:, :96], weight, EPS), torch_rms_norm(x[:, :96], (96,), weight, EPS)
    )
    total, _ = add_rms_norm(x[:, :96], x[:, 100:196], weight, EPS)
    assert torch.equal(total, x[:, :96] + x[:, 100:196])


@pytest.mark.parametrize("value", [0.0, 1e-20, 1e15, torch.nan, torch.inf])
def test_norm_of_extremes(value):
    """Zeros, values whose squares are nearly lost, huge ones; what is no number stays in its row."""
    x, weight = randn(3, 64), randn(64, seed=1)
    clean = rms_norm(x, weight, EPS)
    x[1] = value
    got, expected = rms_norm(x, weight, EPS), torch_rms_norm(x, (64,), weight, EPS)
    torch.testing.assert_close(got, expected, equal_nan=True)
    assert torch.equal(got[[0, 2]], clean[[0, 2]])


@pytest.mark.parametrize(("rows", "heads", "dim"), [(1, 128, 64), (7, 3, 16), (2, 40, 32)])
def test_rotation(rows, heads, dim):
    x, angles = randn(rows, heads, dim + 24), randn(rows, dim // 2, seed=1)
    x = x[..., 24:]
    expected = rotate(x, angles.cos(), angles.sin())
    torch.testing.assert_close(rotate_pairs(x, angles.cos(), angles.sin()), expected)
    out = torch.full((rows, heads, dim + 8), torch.nan, device=DEVICE)
    rotate_pairs(x, angles.cos(), angles.sin(), out[..., 8:])
    torch.testing.assert_close(out[..., 8:], expected)
    assert out[..., :8].isnan().all()


def test_nothing_to_rotate():
    assert rotate_pairs(randn(0, 4, 16), randn(0, 8), randn(0, 8)).shape == (0, 4, 16)


SPECS = {
    "V3": MoeSpec(32, 4, 64, 1, "sigmoid", True, 2.5, 8, 3, "top2"),
    "V2": MoeSpec(40, 6, 64, 1, "softmax", False, 16.0, 4, 2, "max"),
    "V2-Lite": MoeSpec(23, 5, 64, 1, "softmax", False, 1.0, 1, 1, "max"),
    "groups of one": MoeSpec(8, 3, 64, 1, "sigmoid", True, 1.0, 8, 5, "max"),
}


@pytest.fixture(params=SPECS)
def spec(request) -> MoeSpec:
    return SPECS[request.param]


def rule_of(spec: MoeSpec) -> GateRule:
    return GateRule(
        n_experts=spec.n_experts,
        top_k=spec.top_k,
        softmax=spec.gate == "softmax",
        n_groups=spec.n_groups,
        n_groups_used=spec.n_groups_used,
        group_best=2 if spec.group_score == "top2" else 1,
        normalise=spec.normalise_weights,
        weights_scale=spec.weights_scale,
    )


@pytest.mark.parametrize("biased", [True, False])
def test_gate(spec, biased):
    x, weight = randn(8, 200), randn(spec.n_experts, 200, seed=1) / 14
    bias = randn(spec.n_experts, seed=2) if biased else None
    ids, weights = route(x, weight, bias, rule_of(spec))
    expected_ids, expected_weights = Gate(spec, weight, bias)(x)
    assert torch.equal(ids, expected_ids)
    torch.testing.assert_close(weights, expected_weights)


@pytest.mark.parametrize("n", [0, 1, 3, 5, 70])
def test_logits(n):
    x, weight = randn(n, 1100, dtype=torch.float16), randn(9, 1100, seed=1)
    torch.testing.assert_close(route_logits(x, weight), x.float() @ weight.T, rtol=1e-4, atol=1e-4)


def test_equal_ranks_go_by_id(spec):
    """A stable order, in groups and among experts, whatever the number of equals."""
    weight = torch.zeros(spec.n_experts, 8, device=DEVICE)
    ids, _ = route(randn(2, 8), weight, None, rule_of(spec))
    assert ids.tolist() == [list(range(spec.top_k))] * 2
    weight[spec.n_experts - 1] = 1.0
    ids, _ = route(torch.ones(1, 8, device=DEVICE), weight, None, rule_of(spec))
    assert ids[0, 0] == spec.n_experts - 1
    assert ids[0, 1:].tolist() == sorted(ids[0, 1:].tolist())


def test_a_token_without_numbers_keeps_to_itself(spec):
    x, weight = randn(3, 64), randn(spec.n_experts, 64, seed=1)
    clean_ids, clean = route(x, weight, None, rule_of(spec))
    x[1] = torch.nan
    ids, weights = route(x, weight, None, rule_of(spec))
    assert torch.equal(ids[[0, 2]], clean_ids[[0, 2]])
    assert torch.equal(weights[[0, 2]], clean[[0, 2]])
    assert weights[1].isnan().all()
    assert len(set(ids[1].tolist())) == spec.top_k
    assert all(0 <= index < spec.n_experts for index in ids[1].tolist())


def test_huge_logits(spec):
    """A softmax or a sigmoid that saturates is still one."""
    x, weight = randn(4, 64) * 1e4, randn(spec.n_experts, 64, seed=1)
    _, weights = route(x, weight, None, rule_of(spec))
    assert weights.isfinite().all()


def test_long_batches_are_multiplied_by_torch(monkeypatch):
    monkeypatch.setattr(gate_module, "router_kernel", None)
    assert route_logits(randn(65, 16), randn(4, 16)).shape == (65, 4)
