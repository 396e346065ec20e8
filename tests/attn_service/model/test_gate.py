from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from trimaran.spec import MoeSpec
from trimaran_attn.model.gate import Gate

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


def route(spec: MoeSpec, logits: list[float], bias: list[float] | None = None) -> dict[int, float]:
    """Expert → weight for a token whose router logits are these."""
    gate = Gate(spec, torch.tensor([logits]).T, None if bias is None else torch.tensor(bias))
    ids, weights = gate(torch.ones(1, 1))
    assert ids.dtype == torch.int32
    return dict(zip(ids[0].tolist(), weights[0].tolist(), strict=True))


def close(a: dict[int, float], b: dict[int, float | Tensor]) -> bool:
    return a.keys() == b.keys() and all(abs(a[key] - float(b[key])) < 1e-5 for key in a)


LOGITS = [3.0, -9.0, 1.0, 0.9, 1.1, 0.8, 0.0, 0.0]


def test_groups_are_ranked_by_their_two_best_in_v3_and_by_the_best_in_v2() -> None:
    sigmoid, softmax = torch.tensor(LOGITS).sigmoid(), torch.tensor(LOGITS).softmax(0)
    # top2: groups 1 (1.0, 0.9) and 2 (1.1, 0.8) beat group 0 (3.0, -9.0)
    best = sigmoid[[4, 2]] / sigmoid[[4, 2]].sum() * 2.5
    assert close(route(V3, LOGITS), {4: best[0], 2: best[1]})
    # max: groups 0 and 2 stay
    assert close(route(V2, LOGITS), {0: softmax[0] * 16, 4: softmax[4] * 16})


def test_the_bias_takes_part_in_the_choice_only() -> None:
    bias = [0.0] * 6 + [2.0, 2.0]
    sigmoid = torch.tensor(LOGITS).sigmoid()
    chosen = sigmoid[[6, 7]] / sigmoid[[6, 7]].sum() * 2.5
    assert close(route(V3, LOGITS, bias), {6: chosen[0], 7: chosen[1]})


def test_without_groups_the_best_experts_win() -> None:
    spec = replace(V2, n_groups=1, n_groups_used=1, top_k=3, weights_scale=1.0)
    softmax = torch.tensor(LOGITS).softmax(0)
    assert close(route(spec, LOGITS), {i: softmax[i] for i in (0, 4, 2)})
