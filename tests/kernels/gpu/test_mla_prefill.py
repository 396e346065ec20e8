from __future__ import annotations

import pytest
import torch
from interpreted import DEVICE
from trimaran_kernels.gpu.mla_prefill import ChunkAttention

HEADS, NOPE, ROPE, VALUE = 2, 32, 16, 32


def reference(q_nope, q_rope, k_nope, k_rope, values, position, scale):
    scores = torch.einsum("qhd,khd->hqk", q_nope.double(), k_nope.double())
    scores = (scores + torch.einsum("qhd,kd->hqk", q_rope.double(), k_rope.double())) * scale
    seen = (
        torch.arange(len(k_nope), device=DEVICE)
        <= position + torch.arange(len(q_nope), device=DEVICE)[:, None]
    )
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    return torch.einsum("hqk,hkd->qhd", weights, values.double())


@pytest.mark.parametrize(
    ("position", "n", "cuts"),
    [
        (0, 1, []),
        (0, 70, []),  # no prefix, two blocks of queries
        (100, 5, [64]),  # a prefix in two parts
        (30, 40, [30, 50]),  # the chunk's own tokens in several parts: early queries see nothing of the last
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_parts_add_up_to_causal_attention(position, n, cuts, dtype):
    generator = torch.Generator().manual_seed(n)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(DEVICE, dtype)

    length = position + n
    queries = random(n, HEADS, NOPE + ROPE)
    q_nope, q_rope = queries[..., :NOPE], queries[..., NOPE:]
    k_nope, k_rope, values = random(length, HEADS, NOPE), random(length, ROPE), random(HEADS, length, VALUE)
    attention = ChunkAttention(q_nope, q_rope, VALUE, position, 0.2)
    for start, stop in zip([0, *cuts], [*cuts, length], strict=True):
        attention.add(k_nope[start:stop], k_rope[start:stop], values[:, start:stop].contiguous())
    expected = reference(q_nope, q_rope, k_nope, k_rope, values, position, 0.2)
    got = attention.result()
    assert got.dtype == dtype
    error = (got.double() - expected).norm() / expected.norm()
    assert error < (1e-5 if dtype == torch.float32 else 3e-3)
