from __future__ import annotations

import pytest
import torch
from torch import Tensor
from trimaran.synth import REAL_SPECS
from trimaran_attn.model import mla
from trimaran_attn.model.mla import (
    LatentMaps,
    absorb,
    absorbs,
    attend_expanded,
    attend_latents,
    unabsorb,
)

HEADS, NOPE, ROPE, LATENT, V = 3, 8, 4, 16, 6
SCALE = 0.25


def random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.fixture
def maps() -> LatentMaps:
    return LatentMaps(random(HEADS, NOPE, LATENT), random(HEADS, LATENT, V))


def by_definition(q_nope: Tensor, q_rope: Tensor, entries: Tensor, maps: LatentMaps, position: int) -> Tensor:
    """One query and one head at a time."""
    out = torch.empty(len(q_nope), HEADS, V, dtype=torch.float64)
    for i in range(len(q_nope)):
        seen = entries[: position + i + 1]
        for head in range(HEADS):
            keys = torch.cat((seen[:, :LATENT] @ maps.k_b[head].T, seen[:, LATENT:]), -1)
            weights = (keys @ torch.cat((q_nope[i, head], q_rope[i, head])) * SCALE).softmax(0)
            out[i, head] = weights @ (seen[:, :LATENT] @ maps.v_b[head])
    return out


@pytest.mark.parametrize("max_scores", [1, 100, 1 << 20])
@pytest.mark.parametrize(("n", "position"), [(1, 0), (1, 30), (9, 0), (7, 22)])
def test_both_forms_follow_the_definition_whatever_the_blocks(
    maps: LatentMaps, n: int, position: int, max_scores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mla, "MAX_SCORES", max_scores)
    # Softmax runs in float32 inside: compare in float32.
    q_nope, q_rope = random(n, HEADS, NOPE), random(n, HEADS, ROPE)
    entries = random(position + n, LATENT + ROPE)
    expected = by_definition(q_nope, q_rope, entries, maps, position).float()
    maps = LatentMaps(maps.k_b.float(), maps.v_b.float())
    q_nope, q_rope, entries = q_nope.float(), q_rope.float(), entries.float()
    naive = attend_expanded((q_nope, q_rope), entries, maps, position=position, scale=SCALE)
    queries = torch.cat((absorb(q_nope, maps), q_rope), -1)
    mixed = attend_latents(queries, entries, LATENT, position=position, scale=SCALE)
    torch.testing.assert_close(naive, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(unabsorb(mixed, maps), expected, rtol=1e-4, atol=1e-4)


def test_decode_absorbs_and_a_long_prompt_expands() -> None:
    """DeepSeek-V3's sizes."""
    spec = REAL_SPECS["DeepSeek-V3"]
    assert absorbs("auto", spec, 1, 1)
    assert absorbs("auto", spec, 1, 100_000)
    assert absorbs("auto", spec, 16, 4096)
    assert not absorbs("auto", spec, 2048, 0)
    assert not absorbs("auto", spec, 512, 4096)


def test_a_form_that_is_asked_for_is_taken() -> None:
    spec = REAL_SPECS["DeepSeek-V3"]
    assert absorbs("absorbed", spec, 2048, 0)
    assert not absorbs("naive", spec, 1, 100_000)
