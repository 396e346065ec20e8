"""Small models that differ in the same ways as the real ones do."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

from trimaran.spec import ModelSpec, MoeSpec, RopeSpec
from trimaran.synth.tokenizer import synth_tokenizer

ShapeName = Literal["v2", "v2-lite", "v3", "kimi", "moonlight"]
SHAPES: tuple[ShapeName, ...] = get_args(ShapeName)

_YARN = RopeSpec(theta=10000.0, factor=8.0, original_context=256, log_multiplier=0.1)

_V3 = ModelSpec(
    name="v3",
    n_layers=3,
    n_dense_layers=1,
    hidden_size=256,
    dense_intermediate_size=512,
    vocab_size=len(synth_tokenizer().tokens),
    context_length=2048,
    n_heads=4,
    q_lora_rank=96,
    kv_lora_rank=64,
    qk_nope_head_dim=32,
    qk_rope_head_dim=16,
    v_head_dim=32,
    rms_eps=1e-6,
    rope=_YARN,
    moe=MoeSpec(
        n_experts=16,
        top_k=4,
        intermediate_size=256,
        n_shared=1,
        gate="sigmoid",
        normalise_weights=True,
        weights_scale=2.5,
        n_groups=4,
        n_groups_used=2,
        group_score="top2",
    ),
)

_V2 = replace(
    _V3,
    name="v2",
    rope=replace(_YARN, log_multiplier=0.0707),
    moe=replace(
        _V3.moe,
        top_k=3,
        n_shared=2,
        gate="softmax",
        normalise_weights=False,
        weights_scale=16.0,
        n_groups_used=3,
        group_score="max",
    ),
)

_SPECS: dict[ShapeName, ModelSpec] = {
    "v2": _V2,
    "v2-lite": replace(
        _V2,
        name="v2-lite",
        q_lora_rank=None,
        dense_intermediate_size=352,
        # 96 values are no block of 256, as V2-Lite's 1408 are no multiple of one
        moe=replace(_V2.moe, intermediate_size=96, weights_scale=1.0, n_groups=1, n_groups_used=1),
    ),
    "v3": _V3,
    "kimi": replace(
        _V3,
        name="kimi",
        rope=RopeSpec(
            theta=50000.0, factor=32.0, original_context=64, beta_fast=1.0, beta_slow=1.0, log_multiplier=0.1
        ),
        moe=replace(_V3.moe, n_experts=24, weights_scale=2.827, n_groups=1, n_groups_used=1),
    ),
    "moonlight": replace(
        _V3,
        name="moonlight",
        q_lora_rank=None,
        n_heads=3,
        rope=RopeSpec(theta=50000.0),
        moe=replace(_V3.moe, n_shared=2, weights_scale=2.446, n_groups=1, n_groups_used=1),
    ),
}


def random_spec(shape: ShapeName, *, yarn: bool | None = None) -> ModelSpec:
    """The dimensions of a small model of a shape; `yarn` overrides whether its context is extended."""
    spec = _SPECS[shape]
    if yarn is None or yarn == (spec.rope.factor > 1.0):
        return spec
    return replace(spec, rope=replace(_YARN, theta=spec.rope.theta) if yarn else RopeSpec(spec.rope.theta))
