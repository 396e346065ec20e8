"""Module paths, as in the models' published PyTorch code, and the GGUF tensors that hold their weights."""

from __future__ import annotations

import re

LAYER = re.compile(r"^model\.layers\.(\d+)\.(.+)$")

_OUTSIDE = {
    "model.embed_tokens": "token_embd.weight",
    "model.norm": "output_norm.weight",
    "lm_head": "output.weight",
}

_IN_LAYER = {
    "input_layernorm": "attn_norm.weight",
    "self_attn.q_proj": "attn_q.weight",
    "self_attn.q_a_proj": "attn_q_a.weight",
    "self_attn.q_a_layernorm": "attn_q_a_norm.weight",
    "self_attn.q_b_proj": "attn_q_b.weight",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa.weight",
    "self_attn.kv_a_layernorm": "attn_kv_a_norm.weight",
    "self_attn.kv_b_proj": "attn_kv_b.weight",
    "self_attn.k_b_proj": "attn_k_b.weight",
    "self_attn.v_b_proj": "attn_v_b.weight",
    "self_attn.o_proj": "attn_output.weight",
    "post_attention_layernorm": "ffn_norm.weight",
    "mlp.gate_proj": "ffn_gate.weight",
    "mlp.up_proj": "ffn_up.weight",
    "mlp.down_proj": "ffn_down.weight",
    "mlp.gate": "ffn_gate_inp.weight",
    "mlp.gate.e_score_correction_bias": "exp_probs_b.bias",
    "mlp.experts.gate_proj": "ffn_gate_exps.weight",
    "mlp.experts.up_proj": "ffn_up_exps.weight",
    "mlp.experts.down_proj": "ffn_down_exps.weight",
    "mlp.shared_experts.gate_proj": "ffn_gate_shexp.weight",
    "mlp.shared_experts.up_proj": "ffn_up_shexp.weight",
    "mlp.shared_experts.down_proj": "ffn_down_shexp.weight",
}


def tensor_name(path: str) -> str:
    """The GGUF tensor of a module: ``model.layers.3.self_attn.o_proj`` → ``blk.3.attn_output.weight``."""
    match = LAYER.match(path)
    return _OUTSIDE[path] if match is None else f"blk.{match[1]}.{_IN_LAYER[match[2]]}"


def layer_of(path: str) -> int:
    """The layer that a module belongs to; it must belong to one."""
    match = LAYER.match(path)
    assert match is not None, f"{path} is in no layer"
    return int(match[1])
