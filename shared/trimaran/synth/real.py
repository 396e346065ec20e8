"""The dimensions of the real models, as their makers published them."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from trimaran.spec import ModelSpec, MoeSpec, RopeSpec

RealName = Literal["DeepSeek-V2", "DeepSeek-V2-Lite", "DeepSeek-V3", "Kimi-K2", "Moonlight-16B-A3B"]

_V3 = ModelSpec(
    name="DeepSeek-V3",
    n_layers=61,
    n_dense_layers=3,
    hidden_size=7168,
    dense_intermediate_size=18432,
    vocab_size=129280,
    context_length=163840,
    n_heads=128,
    q_lora_rank=1536,
    kv_lora_rank=512,
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    v_head_dim=128,
    rms_eps=1e-6,
    rope=RopeSpec(theta=10000.0, factor=40.0, original_context=4096, log_multiplier=0.1),
    moe=MoeSpec(
        n_experts=256,
        top_k=8,
        intermediate_size=2048,
        n_shared=1,
        gate="sigmoid",
        normalise_weights=True,
        weights_scale=2.5,
        n_groups=8,
        n_groups_used=4,
        group_score="top2",
    ),
)

_V2 = replace(
    _V3,
    name="DeepSeek-V2",
    n_layers=60,
    n_dense_layers=1,
    hidden_size=5120,
    dense_intermediate_size=12288,
    vocab_size=102400,
    rope=replace(_V3.rope, log_multiplier=0.0707),
    moe=MoeSpec(
        n_experts=160,
        top_k=6,
        intermediate_size=1536,
        n_shared=2,
        gate="softmax",
        normalise_weights=False,
        weights_scale=16.0,
        n_groups=8,
        n_groups_used=3,
        group_score="max",
    ),
)

_V2_LITE = replace(
    _V2,
    name="DeepSeek-V2-Lite",
    n_layers=27,
    hidden_size=2048,
    dense_intermediate_size=10944,
    n_heads=16,
    q_lora_rank=None,
    moe=replace(
        _V2.moe, n_experts=64, intermediate_size=1408, weights_scale=1.0, n_groups=1, n_groups_used=1
    ),
)

_KIMI = replace(
    _V3,
    name="Kimi-K2",
    n_dense_layers=1,
    vocab_size=163840,
    context_length=131072,
    n_heads=64,
    rope=RopeSpec(
        theta=50000.0, factor=32.0, original_context=4096, beta_fast=1.0, beta_slow=1.0, log_multiplier=0.1
    ),
    moe=replace(_V3.moe, n_experts=384, weights_scale=2.827, n_groups=1, n_groups_used=1),
)

_MOONLIGHT = replace(
    _V2_LITE,
    name="Moonlight-16B-A3B",
    dense_intermediate_size=11264,
    vocab_size=163840,
    context_length=8192,
    rms_eps=1e-5,
    rope=RopeSpec(theta=50000.0),
    moe=replace(
        _V2_LITE.moe, gate="sigmoid", normalise_weights=True, weights_scale=2.446, group_score="top2"
    ),
)

REAL_SPECS: dict[RealName, ModelSpec] = {
    "DeepSeek-V2": _V2,
    "DeepSeek-V2-Lite": _V2_LITE,
    "DeepSeek-V3": _V3,
    "Kimi-K2": _KIMI,
    "Moonlight-16B-A3B": _MOONLIGHT,
}
"""R1 has V3's dimensions."""
