from __future__ import annotations

import pytest
import torch
from torch import Tensor
from trimaran.synth import REAL_SPECS
from trimaran_attn.model import mla
from trimaran_attn.model.mla import (
    EVEN,
    TILED,
    LatentMaps,
    NaiveCost,
    absorb,
    absorbs,
    attend_expanded,
    attend_latents,
    unabsorb,
)
from trimaran_attn.model.native_attention import naive_cost

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


@pytest.mark.parametrize("name", ["DeepSeek-V3", "DeepSeek-V2-Lite"])
@pytest.mark.parametrize(
    ("n", "position", "even", "tiled"),
    [
        (1, 0, False, True),  # a block of 64 tokens for one
        (7, 0, False, True),
        (8, 0, False, False),
        (1, 100, True, True),
        (1, 100_000, True, True),
        (4, 4096, True, True),
        (12, 100_000, True, True),
        (16, 100_000, True, False),
        (32, 512, True, False),
        (96, 64, True, False),
        (167, 4096, True, False),
        (168, 4096, False, False),
        (512, 4096, False, False),
        (2048, 0, False, False),
    ],
)
def test_where_tiles_expand_the_naive_form_pays_earlier(
    name: str, n: int, position: int, even: bool, tiled: bool
) -> None:
    spec = REAL_SPECS[name]
    assert absorbs("auto", spec, n, position) == even
    assert absorbs("auto", spec, n, position, TILED) == tiled


@pytest.mark.parametrize(
    ("isa", "exact", "cost"),
    [("amx", False, TILED), ("amx", True, EVEN), ("avx512_vnni", False, EVEN), ("avx2", False, EVEN)],
)
def test_the_cost_is_that_of_the_kernels_that_run(isa: str, exact: bool, cost: NaiveCost) -> None:
    assert naive_cost(isa, exact) == cost
