"""Every mix gives every tensor a type that its rows divide into."""

from __future__ import annotations

from collections import Counter
from functools import partial

import pytest
from trimaran.gguf import GGMLType as T
from trimaran.gguf.mix import MIXES, fitting, mix_named
from trimaran.synth import SHAPES, ShapeName, random_spec
from trimaran.synth.weights import tensor_shapes


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("shape", SHAPES)
def test_types_fit(mix: str, shape: ShapeName) -> None:
    for name, dims in tensor_shapes(random_spec(shape), "split").items():
        kind = MIXES[mix].choose(name, dims, 3)
        assert dims[-1] % kind.block_size == 0
        if len(dims) == 1 or "ffn_gate_inp" in name:
            assert kind is T.F32


def test_q4_k_m() -> None:
    choose = partial(mix_named("q4_k_m").choose, n_layers=2)
    assert choose("output.weight", (512, 256)) is T.Q6_K
    assert choose("token_embd.weight", (512, 256)) is T.Q4_K
    assert choose("blk.1.ffn_gate_exps.weight", (8, 256, 256)) is T.Q4_K
    assert choose("blk.1.ffn_down_exps.weight", (8, 256, 256)) is T.Q6_K
    assert choose("blk.1.ffn_down_exps.weight", (8, 256, 96)) is T.Q8_0
    assert choose("blk.1.attn_q_a.weight", (96, 256)) is T.Q4_K
    assert choose("blk.1.attn_q_b.weight", (96, 96)) is T.Q5_0
    assert choose("blk.1.exp_probs_b.bias", (8,)) is T.F32


def test_more_bits_where_errors_weigh_more() -> None:
    choose = partial(mix_named("Q4_K_M").choose, shape=(256, 256), n_layers=16)
    better = [n for n in range(16) if choose(f"blk.{n}.ffn_down.weight") is T.Q6_K]
    assert better == [0, 1, 4, 7, 10, 13, 14, 15]


def test_rows_of_no_block() -> None:
    assert fitting(T.Q4_K, 512) is T.Q4_K
    assert fitting(T.Q4_K, 96) is T.Q5_0
    assert fitting(T.Q4_K, 100) is T.F16
    assert fitting(T.Q8_0, 100) is T.F16
    assert fitting(T.F32, 7) is T.F32


def test_mixes_differ_where_they_should() -> None:
    dims = tensor_shapes(random_spec("v3"), "split")
    kinds = Counter(MIXES["IQ2_XS"].choose(name, shape, 3) for name, shape in dims.items())
    assert kinds[T.IQ2_XS] > 10
    assert {T.Q6_K, T.Q4_K, T.F32} <= set(kinds)


def test_unknown_mix() -> None:
    with pytest.raises(ValueError, match=r"unknown mix 'Q4'; known: F32, .*Q4_K_M"):
        mix_named("Q4")
