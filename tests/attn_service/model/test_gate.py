from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import trimaran_kernels
from torch import Tensor
from trimaran.errors import KernelError
from trimaran.spec import MoeSpec
from trimaran_attn.model.gate import Gate, NativeGate

V3 = MoeSpec(
    n_experts=8,
    top_k=2,
    intermediate_size=4,
    n_shared=1,
    gate="sigmoid",
    normalise_weights=True,
    weights_scale=2.5,
    n_groups=4,
    n_groups_used=2,
    group_score="top2",
)
V2 = replace(V3, gate="softmax", normalise_weights=False, weights_scale=16.0, group_score="max")


@pytest.fixture(scope="module")
def pool() -> trimaran_kernels.ThreadPool:
    return trimaran_kernels.ThreadPool(trimaran_kernels.usable_cpus(2))


Route = Callable[..., dict[int, float]]


@pytest.fixture(params=["torch", "native"])
def route(request: pytest.FixtureRequest, pool: trimaran_kernels.ThreadPool) -> Route:
    """Expert → weight for a token whose router logits are these."""

    def by(spec: MoeSpec, logits: list[float], bias: list[float] | None = None) -> dict[int, float]:
        weight = torch.tensor([logits]).T.contiguous()
        added = None if bias is None else torch.tensor(bias)
        native = request.param == "native"
        gate = NativeGate(spec, weight, added, pool) if native else Gate(spec, weight, added)
        ids, weights = gate(torch.ones(1, 1))
        assert ids.dtype == torch.int32
        return dict(zip(ids[0].tolist(), weights[0].tolist(), strict=True))

    return by


def close(a: dict[int, float], b: dict[int, float | Tensor]) -> bool:
    return a.keys() == b.keys() and all(abs(a[key] - float(b[key])) < 1e-5 for key in a)


LOGITS = [3.0, -9.0, 1.0, 0.9, 1.1, 0.8, 0.0, 0.0]


def test_groups_are_ranked_by_their_two_best_in_v3_and_by_the_best_in_v2(route: Route) -> None:
    sigmoid, softmax = torch.tensor(LOGITS).sigmoid(), torch.tensor(LOGITS).softmax(0)
    # top2: groups 1 (1.0, 0.9) and 2 (1.1, 0.8) beat group 0 (3.0, -9.0)
    best = sigmoid[[4, 2]] / sigmoid[[4, 2]].sum() * 2.5
    assert close(route(V3, LOGITS), {4: best[0], 2: best[1]})
    # max: groups 0 and 2 stay
    assert close(route(V2, LOGITS), {0: softmax[0] * 16, 4: softmax[4] * 16})


def test_the_bias_takes_part_in_the_choice_only(route: Route) -> None:
    bias = [0.0] * 6 + [2.0, 2.0]
    sigmoid = torch.tensor(LOGITS).sigmoid()
    chosen = sigmoid[[6, 7]] / sigmoid[[6, 7]].sum() * 2.5
    assert close(route(V3, LOGITS, bias), {6: chosen[0], 7: chosen[1]})


def test_without_groups_the_best_experts_win(route: Route) -> None:
    spec = replace(V2, n_groups=1, n_groups_used=1, top_k=3, weights_scale=1.0)
    softmax = torch.tensor(LOGITS).softmax(0)
    assert close(route(spec, LOGITS), {i: softmax[i] for i in (0, 4, 2)})


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "spec",
    [
        replace(V3, n_experts=256, top_k=8, n_groups=8, n_groups_used=4),
        replace(V2, n_experts=160, top_k=6, n_groups=8, n_groups_used=3),
        replace(V2, n_experts=64, top_k=6, n_groups=1, n_groups_used=1),
        replace(V3, n_experts=5, top_k=5, n_groups=1, n_groups_used=1),
    ],
)
def test_the_native_gate_chooses_as_torch_does(
    spec: MoeSpec, bias: bool, pool: trimaran_kernels.ThreadPool
) -> None:
    generator = torch.Generator().manual_seed(spec.n_experts)
    weight = torch.randn(spec.n_experts, 96, generator=generator)
    added = torch.randn(spec.n_experts, generator=generator) if bias else None
    x = torch.randn(70, 96, generator=generator) / 10  # so that no sigmoid is 1
    ids, weights = Gate(spec, weight, added)(x)
    native_ids, native_weights = NativeGate(spec, weight, added, pool)(x)
    assert torch.equal(ids.sort(-1).values, native_ids.sort(-1).values)
    ordered = weights.gather(-1, ids.argsort(-1))
    native = native_weights.gather(-1, native_ids.argsort(-1))
    torch.testing.assert_close(ordered, native, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("hidden", [96, 100])
def test_a_token_is_routed_alone_as_in_a_batch(hidden: int, pool: trimaran_kernels.ThreadPool) -> None:
    generator = torch.Generator().manual_seed(hidden)
    spec = replace(V2, n_experts=64, n_groups=1, n_groups_used=1)
    gate = NativeGate(spec, torch.randn(64, hidden, generator=generator), None, pool)
    x = torch.randn(40, hidden, generator=generator)
    ids, weights = gate(x)
    alone = [gate(x[i : i + 1]) for i in range(len(x))]
    assert torch.equal(ids, torch.cat([one for one, _ in alone]))
    assert torch.equal(weights, torch.cat([one for _, one in alone]))


def test_a_gate_refuses_what_does_not_fit(pool: trimaran_kernels.ThreadPool) -> None:
    rule = trimaran_kernels.GateRule(
        n_experts=8,
        top_k=2,
        softmax=True,
        n_groups=1,
        n_groups_used=1,
        group_best=1,
        normalise=False,
        weights_scale=1.0,
    )
    weight = torch.zeros(8, 16).numpy()
    with pytest.raises(KernelError, match="weight"):
        trimaran_kernels.Gate(pool, rule, weight[:7], None)
    with pytest.raises(KernelError, match="bias"):
        trimaran_kernels.Gate(pool, rule, weight, weight[0, :7])
    gate = trimaran_kernels.Gate(pool, rule, weight, None)
    ids, weights = torch.zeros(1, 2, dtype=torch.int32).numpy(), torch.zeros(1, 2).numpy()
    with pytest.raises(KernelError, match="x"):
        gate(weight[:1, :8], ids, weights)


def test_of_equal_experts_the_lower_id_comes_first(pool: trimaran_kernels.ThreadPool) -> None:
    spec = replace(V2, n_groups=1, n_groups_used=1, top_k=3)
    ids, _ = NativeGate(spec, torch.zeros(8, 4), None, pool)(torch.ones(1, 4))
    assert ids.tolist() == [[0, 1, 2]]


def test_a_gate_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(KernelError, match="groups must be equal"):
        trimaran_kernels.GateRule(
            n_experts=10,
            top_k=2,
            softmax=True,
            n_groups=3,
            n_groups_used=1,
            group_best=1,
            normalise=False,
            weights_scale=1.0,
        )
