"""The whole model: embeddings, layers, norm, head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from trimaran.spec import ModelSpec

from trimaran_attn.kv_cache import LatentCache
from trimaran_attn.model.attention import Attention
from trimaran_attn.model.batch import Batch, Output
from trimaran_attn.model.embedding import Embedding
from trimaran_attn.model.kinds import ATTENTION, EMBEDDING, HEAD, MLP, MOE, NORM
from trimaran_attn.model.linear import Linear
from trimaran_attn.model.mlp import FeedForward
from trimaran_attn.model.norm import RMSNorm
from trimaran_attn.model.rope import Rope
from trimaran_attn.model.scoring import score
from trimaran_attn.model.step import Step
from trimaran_attn.registry import Registry


@dataclass(frozen=True)
class Layer:
    """One block: attention, then the feed-forward network, each behind a norm and beside a residual."""

    input_norm: RMSNorm
    attention: Attention
    post_attention_norm: RMSNorm
    feed_forward: FeedForward

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        """x: [T, hidden] → [T, hidden]."""
        x = x + self.attention(self.input_norm(x), step)
        return x + self.feed_forward(self.post_attention_norm(x))


class Deepseek2:
    """The model without its routed experts, which the layers ask for by message."""

    def __init__(
        self, embedding: Embedding, rope: Rope, layers: Sequence[Layer], norm: RMSNorm, head: Linear
    ) -> None:
        self._embedding = embedding
        self._rope = rope
        self._layers = layers
        self._norm = norm
        self._head = head

    @torch.inference_mode()
    def forward(self, batch: Batch, cache: LatentCache) -> Output:
        """Compute a step; the latents of its tokens are in the cache afterwards."""
        step = Step(batch, *self._rope.angles(batch.positions), cache)
        x = self._embedding(batch.token_ids)
        for layer in self._layers:
            x = layer(x, step)
        scores = tuple(score(self._logits, x, scored) for scored in batch.scored)
        return Output(self._logits(x[batch.sampled_rows]), scores)

    def _logits(self, x: Tensor) -> Tensor:
        """x: [n, hidden] → [n, vocab] float32."""
        return self._head(self._norm(x)).float()


def build_model(
    spec: ModelSpec,
    registry: Registry,
    device: torch.device,
    progress: Callable[[float], None] = lambda _: None,
) -> Deepseek2:
    """Build all modules.

    Args:
        spec: dimensions.
        registry: what each module is made of.
        device: where positions are.
        progress: told the share that is done, 0 to 1.
    """
    table = (spec.vocab_size, spec.hidden_size)
    embedding = registry.build("model.embed_tokens", EMBEDDING, table)
    layers = []
    for index in range(spec.n_layers):
        progress(index / spec.n_layers)
        layers.append(_build_layer(spec, registry, index))
    norm = registry.build("model.norm", NORM, (spec.hidden_size,))
    head = registry.build("lm_head", HEAD, table)
    progress(1.0)
    return Deepseek2(embedding, Rope(spec.rope, spec.qk_rope_head_dim, device), layers, norm, head)


def _build_layer(spec: ModelSpec, registry: Registry, index: int) -> Layer:
    path, hidden = f"model.layers.{index}", (spec.hidden_size,)
    return Layer(
        registry.build(f"{path}.input_layernorm", NORM, hidden),
        registry.build(f"{path}.self_attn", ATTENTION),
        registry.build(f"{path}.post_attention_layernorm", NORM, hidden),
        registry.build(f"{path}.mlp", MLP if index < spec.n_dense_layers else MOE),
    )
