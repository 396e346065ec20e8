from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from trimaran.kv_format import KvFormat, entry_bytes
from trimaran.synth import random_spec
from trimaran_attn.kv_codes import decode, encode

SPEC = replace(random_spec("v3"), kv_lora_rank=300, qk_rope_head_dim=6)  # 3 groups, the last one short


def entries(n: int) -> torch.Tensor:
    """Groups of very different magnitude."""
    generator = torch.Generator().manual_seed(n)
    return torch.randn(n, 306, generator=generator) * 10 ** torch.linspace(-3, 3, 306)


@pytest.mark.parametrize("kind", ["f32", "bf16", "fp8", "int8"])
def test_what_is_decoded_is_within_the_stated_error(kind: KvFormat) -> None:
    values = entries(5)
    raw = encode(values, SPEC, kind)
    assert raw.dtype == torch.uint8
    assert raw.shape == (5, entry_bytes(SPEC, kind))
    error = (decode(raw, SPEC, kind).float() - values).abs()
    assert bool((error <= allowed(values, kind)).all())


def allowed(values: torch.Tensor, kind: KvFormat) -> torch.Tensor:
    """Half a step of the format: relative to the value, or to the largest of its group of 128."""
    bound = values.abs() * (0.0 if kind == "f32" else 2**-8)
    for start in range(0, 300, 128) if kind in ("fp8", "int8") else ():
        group = values[:, start : min(start + 128, 300)].abs()
        largest = group.amax(-1, keepdim=True)
        step = largest / 127 if kind == "int8" else torch.maximum(group * 2**-3, largest / 448 * 2**-9)
        bound[:, start : start + group.shape[1]] = step * 0.5001
    return bound


@pytest.mark.parametrize("kind", ["fp8", "int8"])
def test_a_group_that_is_not_finite_decodes_to_nan_and_the_others_as_ever(kind: KvFormat) -> None:
    values = entries(2)
    values[0, 5] = torch.inf
    values[1, 200] = torch.nan
    decoded = decode(encode(values, SPEC, kind), SPEC, kind)
    assert bool(decoded[0, :128].isnan().all())
    assert bool(decoded[0, 128:].isfinite().all())
    assert bool(decoded[1, 128:256].isnan().all())


@pytest.mark.parametrize("kind", ["fp8", "int8"])
def test_zeros_stay_zeros(kind: KvFormat) -> None:
    assert not decode(encode(torch.zeros(3, 306), SPEC, kind), SPEC, kind).any()
