"""The metadata that describe a model: the reverse of `trimaran.spec.read_spec`."""

from __future__ import annotations

import numpy as np

from trimaran.gguf.encode import Writable
from trimaran.model_tensors import MlaLayout
from trimaran.spec import ARCHITECTURE, ModelSpec

GATES = {"softmax": 1, "sigmoid": 2}


def model_metadata(spec: ModelSpec, layout: MlaLayout) -> dict[str, Writable]:
    """The keys of a `deepseek2` file as converters write them; `layout` decides what key_length means."""
    keys = _dimensions(spec) | _attention(spec, layout) | _rope(spec) | _moe(spec)
    head: dict[str, Writable] = {
        "general.architecture": ARCHITECTURE,
        "general.name": spec.name,
        "general.quantization_version": 2,
    }
    return head | {f"{ARCHITECTURE}.{key}": value for key, value in keys.items()}


def _dimensions(spec: ModelSpec) -> dict[str, Writable]:
    return {
        "block_count": spec.n_layers,
        "context_length": spec.context_length,
        "embedding_length": spec.hidden_size,
        "feed_forward_length": spec.dense_intermediate_size,
        "leading_dense_block_count": spec.n_dense_layers,
        "vocab_size": spec.vocab_size,
    }


def _attention(spec: ModelSpec, layout: MlaLayout) -> dict[str, Writable]:
    key, value = spec.qk_nope_head_dim + spec.qk_rope_head_dim, spec.v_head_dim
    keys: dict[str, Writable] = {
        "attention.head_count": spec.n_heads,
        "attention.kv_lora_rank": spec.kv_lora_rank,
        "attention.layer_norm_rms_epsilon": spec.rms_eps,
    }
    if spec.q_lora_rank is not None:
        keys["attention.q_lora_rank"] = spec.q_lora_rank
    if layout == "kv_b":
        return keys | {
            "attention.head_count_kv": spec.n_heads,
            "attention.key_length": key,
            "attention.value_length": value,
        }
    return keys | {
        "attention.head_count_kv": 1,
        "attention.key_length": spec.kv_lora_rank + spec.qk_rope_head_dim,
        "attention.value_length": spec.kv_lora_rank,
        "attention.key_length_mla": key,
        "attention.value_length_mla": value,
    }


def _rope(spec: ModelSpec) -> dict[str, Writable]:
    rope = spec.rope
    keys: dict[str, Writable] = {
        "rope.dimension_count": spec.qk_rope_head_dim,
        "rope.freq_base": rope.theta,
    }
    if rope.factor == 1.0:
        return keys
    return keys | {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": rope.factor,
        "rope.scaling.original_context_length": rope.original_context,
        "rope.scaling.yarn_beta_fast": rope.beta_fast,
        "rope.scaling.yarn_beta_slow": rope.beta_slow,
        "rope.scaling.yarn_log_multiplier": np.float32(rope.log_multiplier),
    }


def _moe(spec: ModelSpec) -> dict[str, Writable]:
    moe = spec.moe
    return {
        "expert_count": moe.n_experts,
        "expert_used_count": moe.top_k,
        "expert_shared_count": moe.n_shared,
        "expert_feed_forward_length": moe.intermediate_size,
        "expert_gating_func": GATES[moe.gate],
        "expert_weights_norm": moe.normalise_weights,
        "expert_weights_scale": moe.weights_scale,
        "expert_group_count": moe.n_groups,
        "expert_group_used_count": moe.n_groups_used,
    }
