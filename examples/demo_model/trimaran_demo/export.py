"""Writes the GGUF file, quantised like llama.cpp's Q4_K_M, and reads it back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from tokenizers import Tokenizer
from trimaran.gguf.mix import mix_named
from trimaran.gguf.quantize import quantize

from .model import DemoModel, ModelConfig
from .names import from_gguf, to_gguf
from .template import BOS, CHAT_TEMPLATE, END_THINK, EOS, PAD, THINK

FILE_TYPES = {
    "F32": gguf.LlamaFileType.ALL_F32,
    "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "Q4_K_M": gguf.LlamaFileType.MOSTLY_Q4_K_M,
}


def _add_dimensions(w: gguf.GGUFWriter, c: ModelConfig) -> None:
    w.add_block_count(c.num_hidden_layers)
    w.add_context_length(c.max_position_embeddings)
    w.add_embedding_length(c.hidden_size)
    w.add_feed_forward_length(c.intermediate_size)
    w.add_head_count(c.num_attention_heads)
    w.add_head_count_kv(1)
    w.add_layer_norm_rms_eps(c.rms_norm_eps)
    w.add_rope_freq_base(c.rope_theta)
    w.add_rope_dimension_count(c.qk_rope_head_dim)
    w.add_q_lora_rank(c.q_lora_rank)
    w.add_kv_lora_rank(c.kv_lora_rank)
    # key_length and value_length are those of the latent cache; the heads' own carry the suffix _mla.
    w.add_key_length(c.kv_lora_rank + c.qk_rope_head_dim)
    w.add_value_length(c.kv_lora_rank)
    w.add_key_length_mla(c.qk_head_dim)
    w.add_value_length_mla(c.v_head_dim)
    w.add_vocab_size(c.vocab_size)


def _add_experts(w: gguf.GGUFWriter, c: ModelConfig) -> None:
    w.add_leading_dense_block_count(c.first_k_dense_replace)
    w.add_expert_count(c.n_routed_experts)
    w.add_expert_used_count(c.num_experts_per_tok)
    w.add_expert_shared_count(c.n_shared_experts)
    w.add_expert_feed_forward_length(c.moe_intermediate_size)
    w.add_expert_weights_scale(c.routed_scaling_factor)
    w.add_expert_weights_norm(True)
    w.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    w.add_expert_group_count(c.n_group)
    w.add_expert_group_used_count(c.topk_group)


def token_types(tokenizer: Tokenizer) -> list[int]:
    """1 for ordinary tokens, 3 (control) for markers, 4 (user defined) for the thinking tags."""
    markers = {i: t.content for i, t in tokenizer.get_added_tokens_decoder().items()}
    special = {i: 4 if text in (THINK, END_THINK) else 3 for i, text in markers.items()}
    return [special.get(i, 1) for i in range(tokenizer.get_vocab_size())]


def _add_tokenizer(w: gguf.GGUFWriter, tokenizer: Tokenizer, merges: list[str]) -> None:
    vocabulary = tokenizer.get_vocab()
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("deepseek-v3")
    w.add_token_list(sorted(vocabulary, key=vocabulary.__getitem__))
    w.add_token_types(token_types(tokenizer))
    w.add_token_merges(merges)
    w.add_bos_token_id(vocabulary[BOS])
    w.add_eos_token_id(vocabulary[EOS])
    w.add_pad_token_id(vocabulary[PAD])
    w.add_add_bos_token(True)
    w.add_add_eos_token(False)
    w.add_chat_template(CHAT_TEMPLATE)


def merges_of(tokenizer: Tokenizer) -> list[str]:
    """The merges in GGUF's form: two tokens with a space between."""
    return [" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]


def write_gguf(path: Path, model: DemoModel, tokenizer: Tokenizer, mix: str = "Q4_K_M") -> None:
    """Write the model in one of `trimaran.gguf.mix`'s mixes; the file appears only when it is whole."""
    choose = mix_named(mix).choose
    part = path.with_suffix(".part")
    w = gguf.GGUFWriter(part, "deepseek2")
    w.add_name("Trimaran demo")
    w.add_description("A tiny DeepSeek-V3, trained from scratch on generated text")
    w.add_license("apache-2.0")
    w.add_size_label("12M")
    w.add_file_type(FILE_TYPES[mix])
    w.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_dimensions(w, model.config)
    _add_experts(w, model.config)
    _add_tokenizer(w, tokenizer, merges_of(tokenizer))
    for name, tensor in to_gguf(model.state_dict(), model.config).items():
        values = tensor.float().numpy()
        kind = choose(name, values.shape, model.config.num_hidden_layers)
        shape = (*values.shape[:-1], kind.row_bytes(values.shape[-1]))
        w.add_tensor(name, quantize(kind, values).reshape(shape), raw_dtype=gguf.GGMLQuantizationType(kind))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    part.replace(path)


def _config_of(reader: gguf.GGUFReader) -> ModelConfig:
    def value(key: str) -> Any:
        field = reader.get_field(f"deepseek2.{key}")
        if field is None:
            raise KeyError(f"deepseek2.{key} is missing from the file")
        return field.contents()

    rope = value("rope.dimension_count")
    return ModelConfig(
        vocab_size=value("vocab_size"),
        hidden_size=value("embedding_length"),
        num_hidden_layers=value("block_count"),
        first_k_dense_replace=value("leading_dense_block_count"),
        intermediate_size=value("feed_forward_length"),
        num_attention_heads=value("attention.head_count"),
        q_lora_rank=value("attention.q_lora_rank"),
        kv_lora_rank=value("attention.kv_lora_rank"),
        qk_nope_head_dim=value("attention.key_length_mla") - rope,
        qk_rope_head_dim=rope,
        v_head_dim=value("attention.value_length_mla"),
        n_routed_experts=value("expert_count"),
        num_experts_per_tok=value("expert_used_count"),
        n_shared_experts=value("expert_shared_count"),
        moe_intermediate_size=value("expert_feed_forward_length"),
        n_group=value("expert_group_count"),
        topk_group=value("expert_group_used_count"),
        routed_scaling_factor=value("expert_weights_scale"),
        rms_norm_eps=value("attention.layer_norm_rms_epsilon"),
        rope_theta=value("rope.freq_base"),
        max_position_embeddings=value("context_length"),
    )


def read_gguf(path: Path) -> DemoModel:
    """The model of a GGUF file, dequantised: what the file's bits are worth."""
    reader = gguf.GGUFReader(path)
    config = _config_of(reader)
    tensors = {}
    for t in reader.tensors:
        values = gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float32)
        tensors[t.name] = torch.from_numpy(values.reshape([int(n) for n in reversed(t.shape)]).copy())
    model = DemoModel(config)
    model.load_state_dict(from_gguf(tensors, config))
    return model.eval()
