from __future__ import annotations

from typing import Any

import numpy as np
import torch
from trimaran_attn.experts_link import RemoteExperts
from trimaran_attn.metrics import Meter


class Echo:
    """Answers with what it was sent."""

    def submit(self, layer: int, x: Any, ids: Any, weights: Any) -> Any:
        self.sent = (layer, x, ids, weights)
        return x

    def wait(self, ticket: Any) -> Any:
        return ticket.astype(np.float32)


def test_tensors_cross_as_arrays_of_the_hops_types() -> None:
    link, meter = Echo(), Meter()
    experts = RemoteExperts(link, meter)  # type: ignore[arg-type]
    x = torch.randn(3, 8).T.contiguous().T  # not contiguous
    ids, weights = torch.ones(3, 2, dtype=torch.int32), torch.ones(3, 2)
    assert torch.equal(experts.wait(experts.submit(5, x, ids, weights)), x)
    layer, sent, sent_ids, sent_weights = link.sent
    assert (layer, sent.dtype, sent_ids.dtype, sent_weights.dtype) == (5, np.float32, np.int32, np.float32)
    assert sent.flags.c_contiguous
    experts.submit(5, x.bfloat16(), ids, weights)
    assert link.sent[1].dtype == np.float32
    experts = RemoteExperts(link, meter, torch.bfloat16)  # type: ignore[arg-type]
    experts.submit(5, x, ids, weights)
    sent = link.sent[1]
    assert sent.dtype == np.uint16
    assert np.array_equal(sent, x.bfloat16().contiguous().view(torch.uint16).numpy())
    samples = meter.take()
    (waited,), (latency,) = (
        samples["attention_wait_on_experts_seconds"],
        samples["expert_rpc_latency_seconds"],
    )
    assert 0 <= waited <= latency
