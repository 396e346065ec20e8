"""Reference models: transformers' DeepSeek classes with weights that the `gguf` package dequantises."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gguf
import interpreted  # noqa: F401 transformers imports Triton
import numpy as np
import torch
from torch import Tensor
from transformers import (
    DeepseekV2Config,
    DeepseekV2ForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    PreTrainedModel,
)
from trimaran.gguf import GGUFFile
from trimaran.spec import ModelSpec, read_spec


def greedy(model: PreTrainedModel, prompt: list[int], count: int) -> list[int]:
    """The `count` likeliest next tokens, one after the other, in float32."""
    ids: list[int] = []
    step, cache = torch.tensor([prompt]), None
    with torch.no_grad():
        while len(ids) < count:
            output = model(step, past_key_values=cache, use_cache=True)
            ids.append(int(output.logits[0, -1].argmax()))
            step, cache = torch.tensor([ids[-1:]]), output.past_key_values
    return ids


def reference_model(path: Path) -> PreTrainedModel:
    """The independent float32 implementation of the model in `path`."""
    with GGUFFile.open(path) as file:
        spec = read_spec(file)
    model = _empty_model(spec)
    weights = _read_weights(path)
    state = dict(_hf_weights(spec, weights))
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not missing, missing
    assert not unexpected, unexpected
    for module in model.modules():
        if hasattr(module, "variance_epsilon"):
            # transformers leaves the norms of the LoRA ranks at 1e-6, whatever the model says; llama.cpp and
            # we use the file's epsilon everywhere.
            module.variance_epsilon = spec.rms_eps
    return model.eval()


def _empty_model(spec: ModelSpec) -> PreTrainedModel:
    moe, rope = spec.moe, spec.rope
    parameters: dict[str, object] = {"rope_type": "default", "rope_theta": rope.theta}
    if rope.factor > 1:
        parameters = {
            "rope_type": "yarn",
            "rope_theta": rope.theta,
            "factor": rope.factor,
            "original_max_position_embeddings": rope.original_context,
            "beta_fast": rope.beta_fast,
            "beta_slow": rope.beta_slow,
        }
        if rope.log_multiplier:
            parameters |= {"mscale": rope.log_multiplier * 10, "mscale_all_dim": rope.log_multiplier * 10}
    shared = {
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.dense_intermediate_size,
        "moe_intermediate_size": moe.intermediate_size,
        "num_hidden_layers": spec.n_layers,
        "num_attention_heads": spec.n_heads,
        "num_key_value_heads": spec.n_heads,
        "n_shared_experts": moe.n_shared,
        "n_routed_experts": moe.n_experts,
        "num_experts_per_tok": moe.top_k,
        "routed_scaling_factor": moe.weights_scale,
        "norm_topk_prob": moe.normalise_weights,
        "n_group": moe.n_groups,
        "topk_group": moe.n_groups_used,
        "kv_lora_rank": spec.kv_lora_rank,
        "q_lora_rank": spec.q_lora_rank,
        "qk_rope_head_dim": spec.qk_rope_head_dim,
        "qk_nope_head_dim": spec.qk_nope_head_dim,
        "v_head_dim": spec.v_head_dim,
        "first_k_dense_replace": spec.n_dense_layers,
        "max_position_embeddings": spec.context_length,
        "rms_norm_eps": spec.rms_eps,
        "rope_parameters": parameters,
        "attn_implementation": "eager",
    }
    if moe.gate == "sigmoid":
        config = DeepseekV3Config(**shared, num_mtp_layers=0)
        return DeepseekV3ForCausalLM(config)
    method = "group_limited_greedy" if moe.n_groups > 1 else "greedy"
    return DeepseekV2ForCausalLM(DeepseekV2Config(**shared, topk_method=method))


def _read_weights(path: Path) -> dict[str, Tensor]:
    weights = {}
    for tensor in gguf.GGUFReader(path).tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        weights[tensor.name] = torch.from_numpy(values.reshape(tuple(reversed(tensor.shape.tolist()))).copy())
    return weights


def _hf_weights(spec: ModelSpec, weights: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    yield "model.embed_tokens.weight", weights["token_embd.weight"]
    yield "model.norm.weight", weights["output_norm.weight"]
    yield "lm_head.weight", weights.get("output.weight", weights["token_embd.weight"])
    for index in range(spec.n_layers):
        prefix = f"blk.{index}."
        layer = {name[len(prefix) :]: w for name, w in weights.items() if name.startswith(prefix)}
        for name, weight in _hf_layer(spec, layer, dense=index < spec.n_dense_layers):
            yield f"model.layers.{index}.{name}", weight


def _hf_layer(spec: ModelSpec, layer: dict[str, Tensor], *, dense: bool) -> Iterator[tuple[str, Tensor]]:
    names = {
        "attn_norm.weight": "input_layernorm.weight",
        "ffn_norm.weight": "post_attention_layernorm.weight",
        "attn_q.weight": "self_attn.q_proj.weight",
        "attn_q_a.weight": "self_attn.q_a_proj.weight",
        "attn_q_a_norm.weight": "self_attn.q_a_layernorm.weight",
        "attn_q_b.weight": "self_attn.q_b_proj.weight",
        "attn_kv_a_mqa.weight": "self_attn.kv_a_proj_with_mqa.weight",
        "attn_kv_a_norm.weight": "self_attn.kv_a_layernorm.weight",
        "attn_output.weight": "self_attn.o_proj.weight",
        "ffn_gate.weight": "mlp.gate_proj.weight",
        "ffn_up.weight": "mlp.up_proj.weight",
        "ffn_down.weight": "mlp.down_proj.weight",
        "ffn_gate_inp.weight": "mlp.gate.weight",
        "exp_probs_b.bias": "mlp.gate.e_score_correction_bias",
        "ffn_gate_shexp.weight": "mlp.shared_experts.gate_proj.weight",
        "ffn_up_shexp.weight": "mlp.shared_experts.up_proj.weight",
        "ffn_down_shexp.weight": "mlp.shared_experts.down_proj.weight",
        "ffn_down_exps.weight": "mlp.experts.down_proj",
    }
    for name, weight in layer.items():
        if name in names:
            yield names[name], weight
    yield "self_attn.kv_b_proj.weight", _kv_b(spec, layer)
    if not dense:
        gate, up = layer["ffn_gate_exps.weight"], layer["ffn_up_exps.weight"]
        yield "mlp.experts.gate_up_proj", torch.cat((gate, up), 1)


def _kv_b(spec: ModelSpec, layer: dict[str, Tensor]) -> Tensor:
    """[heads × (nope + v), rank] from either layout."""
    if "attn_kv_b.weight" in layer:
        return layer["attn_kv_b.weight"]
    k_b = layer["attn_k_b.weight"].transpose(1, 2)  # [heads, rank, nope] → [heads, nope, rank]
    both = torch.cat((k_b, layer["attn_v_b.weight"]), 1)
    return both.reshape(-1, spec.kv_lora_rank)
