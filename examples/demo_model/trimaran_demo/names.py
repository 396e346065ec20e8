"""GGUF's tensors for our parameters, in both directions, in the layout of llama.cpp's `deepseek2`.

The latent's up-projection is stored split and transposed (`attn_k_b`, `attn_v_b`), the experts' stacks
as three tensors; everything else is renamed only.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .model import ModelConfig

State = dict[str, Tensor]

TOP = {
    "embed_tokens.weight": "token_embd.weight",
    "norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
IN_LAYER = {
    "self_attn.q_a_proj.weight": "attn_q_a.weight",
    "self_attn.q_a_layernorm.weight": "attn_q_a_norm.weight",
    "self_attn.q_b_proj.weight": "attn_q_b.weight",
    "self_attn.kv_a_proj_with_mqa.weight": "attn_kv_a_mqa.weight",
    "self_attn.kv_a_layernorm.weight": "attn_kv_a_norm.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
    "mlp.gate.weight": "ffn_gate_inp.weight",
    "mlp.gate.e_score_correction_bias": "exp_probs_b.bias",
    "mlp.shared_experts.gate_proj.weight": "ffn_gate_shexp.weight",
    "mlp.shared_experts.up_proj.weight": "ffn_up_shexp.weight",
    "mlp.shared_experts.down_proj.weight": "ffn_down_shexp.weight",
    "mlp.down_proj": "ffn_down_exps.weight",
}
KV_B, GATE_UP = "self_attn.kv_b_proj.weight", "mlp.gate_up_proj"


def to_gguf(state: State, config: ModelConfig) -> State:
    """Our state dict under GGUF's names and shapes."""
    out: State = {gguf: state[ours] for ours, gguf in TOP.items()}
    for i in range(config.num_hidden_layers):
        ours, blk = f"layers.{i}.", f"blk.{i}."
        out |= {blk + g: state[ours + o] for o, g in IN_LAYER.items() if ours + o in state}
        kv_b = state[ours + KV_B].view(config.num_attention_heads, -1, config.kv_lora_rank)
        keys, values = torch.split(kv_b, [config.qk_nope_head_dim, config.v_head_dim], 1)
        out[blk + "attn_k_b.weight"] = keys.transpose(1, 2).contiguous()  # [heads, latent, nope]
        out[blk + "attn_v_b.weight"] = values.contiguous()  # [heads, v, latent]
        if ours + GATE_UP in state:
            gate, up = state[ours + GATE_UP].chunk(2, 1)
            out[blk + "ffn_gate_exps.weight"] = gate.contiguous()  # [experts, intermediate, hidden]
            out[blk + "ffn_up_exps.weight"] = up.contiguous()
    return out


def from_gguf(tensors: State, config: ModelConfig) -> State:
    """The inverse of `to_gguf`."""
    out: State = {ours: tensors[gguf] for ours, gguf in TOP.items()}
    for i in range(config.num_hidden_layers):
        ours, blk = f"layers.{i}.", f"blk.{i}."
        out |= {ours + o: tensors[blk + g] for o, g in IN_LAYER.items() if blk + g in tensors}
        keys = tensors[blk + "attn_k_b.weight"].transpose(1, 2)
        out[ours + KV_B] = torch.cat([keys, tensors[blk + "attn_v_b.weight"]], 1).flatten(0, 1)
        if blk + "ffn_gate_exps.weight" in tensors:
            stacks = [tensors[blk + f"ffn_{part}_exps.weight"] for part in ("gate", "up")]
            out[ours + GATE_UP] = torch.cat(stacks, 1)
    return out
