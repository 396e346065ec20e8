"""DeepSeek-V3's network, lean enough to train on a CPU; the maths of transformers' DeepseekV3ForCausalLM.

A batch is a list of *groups*, each a rectangle of right-padded sequences of similar length: everything
but the attention runs on all tokens of all groups at once, the attention runs per group. Padding on the
right needs no mask under causal attention: no real token sees it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as fn

Shape = tuple[int, int]  # sequences, padded length


@dataclass(frozen=True)
class ModelConfig:
    """Dimensions; the names are those of Hugging Face's configuration."""

    vocab_size: int = 1280
    hidden_size: int = 256
    num_hidden_layers: int = 4
    first_k_dense_replace: int = 1
    intermediate_size: int = 512
    num_attention_heads: int = 4
    q_lora_rank: int = 128
    kv_lora_rank: int = 128
    qk_nope_head_dim: int = 32
    qk_rope_head_dim: int = 32
    v_head_dim: int = 64
    n_routed_experts: int = 16
    num_experts_per_tok: int = 2
    n_shared_experts: int = 1
    moe_intermediate_size: int = 256
    n_group: int = 4
    topk_group: int = 2
    routed_scaling_factor: float = 2.0
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    max_position_embeddings: int = 4096

    @property
    def qk_head_dim(self) -> int:
        """Width of one head's query and key."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim


class Norm(nn.RMSNorm):
    """RMS norm with a learnt scale."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__(size, eps=eps)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False)


def rope_table(config: ModelConfig, length: int) -> Tensor:
    """Rotations as complex numbers, [length, rope / 2]."""
    exponents = torch.arange(0, config.qk_rope_head_dim, 2, dtype=torch.float32) / config.qk_rope_head_dim
    angles = torch.outer(torch.arange(length, dtype=torch.float32), config.rope_theta**-exponents)
    return torch.polar(torch.ones_like(angles), angles)


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Interleaved RoPE: x is [batch, length, heads, rope], pairs (x0, x1), (x2, x3), ... turn together."""
    pairs = torch.view_as_complex(x.view(*x.shape[:-1], -1, 2).contiguous())
    return torch.view_as_real(pairs * table[: x.shape[1], None]).flatten(-2)


class Attention(nn.Module):
    """Multi-head latent attention, expanded (not absorbed) as suits training."""

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.c = c
        self.q_a_proj = _linear(c.hidden_size, c.q_lora_rank)
        self.q_a_layernorm = Norm(c.q_lora_rank, c.rms_norm_eps)
        self.q_b_proj = _linear(c.q_lora_rank, c.num_attention_heads * c.qk_head_dim)
        self.kv_a_proj_with_mqa = _linear(c.hidden_size, c.kv_lora_rank + c.qk_rope_head_dim)
        self.kv_a_layernorm = Norm(c.kv_lora_rank, c.rms_norm_eps)
        self.kv_b_proj = _linear(c.kv_lora_rank, c.num_attention_heads * (c.qk_nope_head_dim + c.v_head_dim))
        self.o_proj = _linear(c.num_attention_heads * c.v_head_dim, c.hidden_size)

    def forward(self, x: Tensor, shapes: list[Shape], table: Tensor) -> Tensor:
        """x: [tokens, hidden], the tokens of the groups one after the other."""
        c = self.c
        q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))
        latent, k_rope = torch.split(self.kv_a_proj_with_mqa(x), [c.kv_lora_rank, c.qk_rope_head_dim], -1)
        kv = self.kv_b_proj(self.kv_a_layernorm(latent))
        sizes = [rows * length for rows, length in shapes]
        parts = zip(shapes, *(torch.split(t, sizes) for t in (q, k_rope, kv)), strict=True)
        heads = [self._attend(shape, q_, k_, kv_, table) for shape, q_, k_, kv_ in parts]
        out: Tensor = self.o_proj(torch.cat(heads))
        return out

    def _attend(self, shape: Shape, q: Tensor, k_rope: Tensor, kv: Tensor, table: Tensor) -> Tensor:
        c, heads = self.c, self.c.num_attention_heads
        q_nope, q_rope = torch.split(q.view(*shape, heads, -1), [c.qk_nope_head_dim, c.qk_rope_head_dim], -1)
        k_nope, v = torch.split(kv.view(*shape, heads, -1), [c.qk_nope_head_dim, c.v_head_dim], -1)
        k_turned = rotate(k_rope.view(*shape, 1, -1), table).expand(-1, -1, heads, -1)
        query = torch.cat([q_nope, rotate(q_rope, table)], -1).transpose(1, 2)
        key = torch.cat([k_nope, k_turned], -1).transpose(1, 2)
        out = fn.scaled_dot_product_attention(query, key, v.transpose(1, 2), is_causal=True)
        return out.transpose(1, 2).reshape(shape[0] * shape[1], -1)


class MLP(nn.Module):
    """SwiGLU: a dense layer's network, or the shared expert."""

    def __init__(self, hidden: int, intermediate: int) -> None:
        super().__init__()
        self.gate_proj = _linear(hidden, intermediate)
        self.up_proj = _linear(hidden, intermediate)
        self.down_proj = _linear(intermediate, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """x: [tokens, hidden]."""
        out: Tensor = self.down_proj(fn.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Gate(nn.Module):
    """Sigmoid scores; the choice, not the weights, sees the bias, and only the best groups."""

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.c = c
        self.weight = nn.Parameter(torch.empty(c.n_routed_experts, c.hidden_size))
        self.e_score_correction_bias: Tensor
        self.register_buffer("e_score_correction_bias", torch.zeros(c.n_routed_experts))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Expert ids and weights, each [tokens, top_k]."""
        c = self.c
        scores = fn.linear(x, self.weight).sigmoid()
        with torch.no_grad():
            ids = self._choose(scores)
        weights = scores.gather(1, ids)
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20) * c.routed_scaling_factor
        return ids, weights

    def _choose(self, scores: Tensor) -> Tensor:
        c = self.c
        biased = (scores + self.e_score_correction_bias).view(-1, c.n_group, c.n_routed_experts // c.n_group)
        group_scores = biased.topk(2, dim=-1).values.sum(-1)
        lost = torch.ones_like(group_scores, dtype=torch.bool)
        lost.scatter_(1, group_scores.topk(c.topk_group, dim=-1).indices, False)
        biased = biased.masked_fill(lost[..., None], float("-inf"))
        return biased.flatten(1).topk(c.num_experts_per_tok, dim=-1).indices


class MoE(nn.Module):
    """Routed experts plus one shared expert."""

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.c = c
        self.gate = Gate(c)
        size = c.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(c.n_routed_experts, 2 * size, c.hidden_size))
        self.down_proj = nn.Parameter(torch.empty(c.n_routed_experts, c.hidden_size, size))
        self.shared_experts = MLP(c.hidden_size, size * c.n_shared_experts)
        self.load: Tensor | None = None  # tokens per expert of the last forward pass, for the bias update

    def forward(self, x: Tensor) -> Tensor:
        """x: [tokens, hidden]."""
        ids, weights = self.gate(x)
        flat = ids.flatten()
        order = flat.argsort(stable=True)
        self.load = torch.bincount(flat, minlength=self.c.n_routed_experts)
        rows = order // self.c.num_experts_per_tok
        routed = self._experts(x[rows], self.load.tolist()) * weights.flatten()[order, None]
        out: Tensor = self.shared_experts(x).index_add(0, rows, routed)
        return out

    def _experts(self, x: Tensor, counts: list[int]) -> Tensor:
        """x: rows sorted by expert. Unbinding once gives one gradient per stack instead of one per expert."""
        outputs = []
        stacks = self.gate_up_proj.unbind(), self.down_proj.unbind()
        for part, gate_up, down in zip(torch.split(x, counts), *stacks, strict=True):
            gate, up = fn.linear(part, gate_up).chunk(2, -1)
            outputs.append(fn.linear(fn.silu(gate) * up, down))
        return torch.cat(outputs)


class Layer(nn.Module):
    """Attention, then a dense network or a mixture of experts, each on a normed residual."""

    def __init__(self, c: ModelConfig, index: int) -> None:
        super().__init__()
        self.self_attn = Attention(c)
        self.mlp = MLP(c.hidden_size, c.intermediate_size) if index < c.first_k_dense_replace else MoE(c)
        self.input_layernorm = Norm(c.hidden_size, c.rms_norm_eps)
        self.post_attention_layernorm = Norm(c.hidden_size, c.rms_norm_eps)

    def forward(self, x: Tensor, shapes: list[Shape], table: Tensor) -> Tensor:
        """x: [tokens, hidden]."""
        x = x + self.self_attn(self.input_layernorm(x), shapes, table)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class DemoModel(nn.Module):
    """The whole network; parameter names follow Hugging Face's."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.num_hidden_layers))
        self.norm = Norm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = _linear(config.hidden_size, config.vocab_size)
        self.table: Tensor
        self.register_buffer("table", rope_table(config, config.max_position_embeddings), persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        """Unit-variance-preserving matrices, smaller where they write to the residual stream."""
        depth = (2 * self.config.num_hidden_layers) ** -0.5
        for name, p in self.named_parameters():
            if p.dim() >= 2:
                writes = name.endswith(("o_proj.weight", "down_proj.weight", "down_proj"))
                nn.init.normal_(p, std=p.shape[-1] ** -0.5 * (depth if writes else 1.0))
        nn.init.normal_(self.embed_tokens.weight, std=0.5)
        nn.init.normal_(self.lm_head.weight, std=0.02)

    def forward(self, groups: list[Tensor], wanted: Tensor | None = None) -> Tensor:
        """Logits [tokens, vocab] of all tokens of the groups (each [rows, length]) or those at `wanted`."""
        shapes: list[Shape] = [(g.shape[0], g.shape[1]) for g in groups]
        x = self.embed_tokens(torch.cat([g.flatten() for g in groups]))
        for layer in self.layers:
            x = layer(x, shapes, self.table)
        x = self.norm(x if wanted is None else x[wanted])
        logits: Tensor = self.lm_head(x)
        return logits
