"""The reference of the routed experts."""

from __future__ import annotations

import torch
from trimaran_attn.experts import SKIPPED, LocalExperts


def test_skipped_places_add_nothing_whatever_their_weight() -> None:
    torch.manual_seed(0)
    gate, up, down = torch.randn(4, 6, 8), torch.randn(4, 6, 8), torch.randn(4, 8, 6)
    experts = LocalExperts(3, gate, up, down)
    x, weights = torch.randn(3, 8), torch.rand(3, 2)
    ids = torch.tensor([[0, 2], [3, 1], [1, 2]], dtype=torch.int32)
    whole = experts.wait(experts.submit(3, x, ids, weights))
    without_first = experts.wait(experts.submit(3, x, ids, weights * torch.tensor([0.0, 1.0])))
    ids[0, 0], weights[0, 0] = SKIPPED, torch.nan
    ids[1], weights[1] = SKIPPED, torch.inf
    y = experts.wait(experts.submit(3, x, ids, weights))
    torch.testing.assert_close(y[0], without_first[0])
    assert torch.equal(y[1], torch.zeros(8))
    torch.testing.assert_close(y[2], whole[2])
