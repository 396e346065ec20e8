"""A DeepSeek model's dimensions, as plain numbers read from its file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class RopeSpec:
    """Rotary embedding over the last `qk_rope_head_dim` values of each query head, interleaved pairs.

    `factor` 1 is plain RoPE; above it, YaRN (arXiv 2309.00071). `log_multiplier` is 0.1 × mscale_all_dim.
    """

    theta: float
    factor: float = 1.0
    original_context: int = 0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    log_multiplier: float = 0.0


@dataclass(frozen=True)
class MoeSpec:
    """The mixture of experts of every layer from `ModelSpec.n_dense_layers` on.

    gate: how router logits become scores. group_score: how a group of experts is ranked, by its best expert
    ("max", V2) or the sum of its two best ("top2", V3); n_groups 1 means no groups.
    """

    n_experts: int
    top_k: int
    intermediate_size: int
    n_shared: int
    gate: Literal["softmax", "sigmoid"]
    normalise_weights: bool
    weights_scale: float
    n_groups: int
    n_groups_used: int
    group_score: Literal["max", "top2"]


@dataclass(frozen=True)
class ModelSpec:
    """Dimensions of a `deepseek2` model, in elements. `q_lora_rank` None means a plain query matrix."""

    name: str
    n_layers: int
    n_dense_layers: int
    hidden_size: int
    dense_intermediate_size: int
    vocab_size: int
    context_length: int
    n_heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    rms_eps: float
    rope: RopeSpec
    moe: MoeSpec
