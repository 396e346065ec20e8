"""The whole model: embeddings, layers, norm, head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from trimaran.spec import ModelSpec
from trimaran.timeline import Tracer

from trimaran_attn.kv_cache import LatentCache
from trimaran_attn.model.attention import Attention
from trimaran_attn.model.batch import Batch, Output, split_batch
from trimaran_attn.model.embedding import Embedding
from trimaran_attn.model.kinds import ATTENTION, EMBEDDING, HEAD, MLP, MOE, NORM
from trimaran_attn.model.linear import Linear
from trimaran_attn.model.mlp import FeedForward, Pending
from trimaran_attn.model.norm import RMSNorm
from trimaran_attn.model.rope import Rope
from trimaran_attn.model.scoring import score
from trimaran_attn.model.step import Step
from trimaran_attn.registry import Registry


@dataclass(frozen=True)
class Layer:
    """One block: attention, then the feed-forward network, each behind a norm and beside a residual."""

    index: int
    input_norm: RMSNorm
    attention: Attention
    post_attention_norm: RMSNorm
    feed_forward: FeedForward

    def begin(self, x: Tensor, step: Step) -> Pending:
        """x: [T, hidden] → [T, hidden], once its routed experts are waited for."""
        with step.tracer.span("attention", self.index, len(x)):
            x = x + self.attention(self.input_norm(x), step)
        with step.tracer.span("feed forward", self.index, len(x)):
            pending = self.feed_forward.begin(self.post_attention_norm(x), step)
        return lambda: x + pending()


@dataclass(frozen=True)
class ForwardOptions:
    """How steps are computed.

    Attributes:
        micro_batches: parts that a step is cut into, which keep attention and experts busy at the same time.
        tracer: records who does what.
    """

    micro_batches: int = 1
    tracer: Tracer = field(default_factory=Tracer)


class Deepseek2:
    """The model without its routed experts, which the layers ask for by message.

    Args:
        embedding, rope, layers, norm, head: its parts.
        options: how a step's tokens are cut, and who records what becomes of them.
    """

    def __init__(
        self,
        embedding: Embedding,
        rope: Rope,
        layers: Sequence[Layer],
        norm: RMSNorm,
        head: Linear,
        *,
        options: ForwardOptions,
    ) -> None:
        self._embedding = embedding
        self._rope = rope
        self._layers = layers
        self._norm = norm
        self._head = head
        self._options = options

    @torch.inference_mode()
    def forward(self, batch: Batch, cache: LatentCache) -> Output:
        """Compute a step; the latents of its tokens are in the cache afterwards."""
        tracer = self._options.tracer
        parts = split_batch(batch, self._options.micro_batches)
        steps = [Step(part, *self._rope.angles(part.positions), cache, tracer) for part in parts]
        embedded = [partial(self._embed, part) for part in parts]
        x = self._through_layers(embedded, steps)
        with tracer.span("head"):
            scores = tuple(score(self._logits, x, scored) for scored in batch.scored)
            return Output(self._logits(x[batch.sampled_rows]), scores)

    def _through_layers(self, embedded: Sequence[Pending], steps: Sequence[Step]) -> Tensor:
        """All parts in turns, so that the experts compute one while another's attention is computed here.

        A later part of a prompt finds the earlier part's latents: in every layer the parts go in order.
        """
        pending: list[Pending] = list(embedded)
        for layer in self._layers:
            for index, step in enumerate(steps):
                pending[index] = layer.begin(pending[index](), step)
        parts = [finish() for finish in pending]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def embed(self, token_ids: Tensor) -> Tensor:
        """token_ids: int64 [T] on the CPU → [T, hidden]."""
        return self._embedding(token_ids)

    def _embed(self, part: Batch) -> Tensor:
        return self._embedding(part.token_ids) if part.decode is None else part.decode.x

    def _logits(self, x: Tensor) -> Tensor:
        """x: [n, hidden] → [n, vocab] float32."""
        return self._head(self._norm(x)).float()


def build_model(
    spec: ModelSpec,
    registry: Registry,
    device: torch.device,
    progress: Callable[[float], None] = lambda _: None,
    options: ForwardOptions | None = None,
) -> Deepseek2:
    """Build all modules.

    Args:
        spec: dimensions.
        registry: what each module is made of.
        device: where positions are.
        progress: told the share that is done, 0 to 1.
        options: of its forward pass.
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
    return Deepseek2(
        embedding,
        Rope(spec.rope, spec.qk_rope_head_dim, device),
        layers,
        norm,
        head,
        options=options or ForwardOptions(),
    )


def _build_layer(spec: ModelSpec, registry: Registry, index: int) -> Layer:
    path, hidden = f"model.layers.{index}", (spec.hidden_size,)
    return Layer(
        index,
        registry.build(f"{path}.input_layernorm", NORM, hidden),
        registry.build(f"{path}.self_attn", ATTENTION),
        registry.build(f"{path}.post_attention_layernorm", NORM, hidden),
        registry.build(f"{path}.mlp", MLP if index < spec.n_dense_layers else MOE),
    )
