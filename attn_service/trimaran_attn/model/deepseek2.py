"""The whole model: embeddings, layers, norm, head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

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
from trimaran_attn.model.native_layers import native_layers
from trimaran_attn.model.norm import RMSNorm
from trimaran_attn.model.rope import Rope
from trimaran_attn.model.scoring import score
from trimaran_attn.model.step import Step
from trimaran_attn.placement import Placement, entered, turns
from trimaran_attn.registry import Registry
from trimaran_attn.stopping import StepStop


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
            x, normed = self.post_attention_norm.after_adding(x, self.attention(self.input_norm(x), step))
        with step.tracer.span("feed forward", self.index, len(x)):
            pending = self.feed_forward.begin(normed, step)
        return lambda: x + pending()


@dataclass(frozen=True)
class ForwardOptions:
    """How steps are computed.

    Attributes:
        micro_batches: parts that a step is cut into, which keep attention and experts busy at the same time.
        tracer: records who does what.
        stop: ends a step between two layers.
    """

    micro_batches: int = 1
    tracer: Tracer = field(default_factory=Tracer)
    stop: StepStop = field(default_factory=StepStop)


class Deepseek2:
    """The model without its routed experts, which the layers ask for by message.

    Args:
        embedding, layers, norm, head: its parts, on the devices of `placement`.
        ropes: one for each stage of `placement`.
        placement: which layers are where. What a layer reads besides x is moved to its device once a step.
        options: how a step's tokens are cut, and who records what becomes of them.
    """

    def __init__(
        self,
        embedding: Embedding,
        layers: Sequence[Layer],
        norm: RMSNorm,
        head: Linear,
        *,
        ropes: Sequence[Rope],
        placement: Placement,
        options: ForwardOptions,
    ) -> None:
        self._embedding = embedding
        self._layers = layers
        self._norm = norm
        self._head = head
        self._ropes = ropes
        self._placement = placement
        self._stage_of = [placement.stage_of(layer.index) for layer in layers]
        self._options = options
        self._native = native_layers(layers) if len(placement.stages) == 1 else None

    @torch.inference_mode()
    def forward(self, batch: Batch, cache: LatentCache) -> Output:
        """Compute a step; the latents of its tokens are in the cache afterwards.

        Raises:
            StepStoppedError: it was ended between two layers.
        """
        parts = split_batch(batch, self._options.micro_batches)
        steps = [self._steps(part, cache) for part in parts]
        if self._native is not None and self._native.is_ready and len(parts) == 1:
            x = self._native(self._embed(parts[0]), steps[0][0], self._options.stop)
        else:
            x = self._through_layers(parts, steps)
        with self._options.tracer.span("head"), entered(self._placement.last):
            wanted = batch.to(x.device)
            scores = tuple(score(self._logits, x, scored) for scored in wanted.scored)
            return Output(self._logits(x[wanted.sampled_rows]), scores)

    @torch.inference_mode()
    def forward_stage(self, stage: int, batch: Batch, cache: LatentCache) -> Tensor:
        """Compute the layers of one device over rows to decode; the same as `forward`, part by part.

        No layer may leave deferred experts to the next device.

        Args:
            stage: index of the placement's stage.
            batch: on its device; `decode.x` is what comes into its first layer.
            cache: as of `forward`.

        Returns:
            What comes out of its last layer, [R, hidden]; of the last stage, logits of the sampled rows.
        """
        assert batch.decode is not None
        place, x = self._placement.stages[stage], batch.decode.x
        with entered(place.device):
            cos, sin = self._ropes[stage].angles(batch.positions)
            step = Step(batch, cos, sin, cache, self._options.tracer)
            for index in place.layers:
                x = self._layers[index].begin(x, step)()
            assert not step.deferred, "experts deferred from one device to the next"
            if stage < len(self._ropes) - 1:
                return x
            with self._options.tracer.span("head"):
                return self._logits(x[batch.sampled_rows])

    def _steps(self, part: Batch, cache: LatentCache) -> list[Step]:
        """A part's step on each device. What a layer defers, the next device's first layer may take over."""
        deferred: dict[int, Any] = {}
        steps = []
        for stage, rope in zip(self._placement.stages, self._ropes, strict=True):
            local = part.to(stage.device)
            cos, sin = rope.angles(local.positions)
            steps.append(Step(local, cos, sin, cache, self._options.tracer, deferred))
        return steps

    def _through_layers(self, parts: Sequence[Batch], steps: Sequence[Sequence[Step]]) -> Tensor:
        """All parts in turns, so that the experts compute one while another's attention is computed here."""
        pending: list[Pending] = [partial(self._embed, part) for part in parts]
        for index, part in turns([stage.layers for stage in self._placement.stages], len(parts)):
            stage = self._stage_of[index]
            x = self._finish(pending[part], index)
            self._options.stop.check()
            device = self._placement.stages[stage].device
            with entered(device):
                pending[part] = self._layers[index].begin(x.to(device), steps[part][stage])
        done = [self._finish(last, len(self._layers)) for last in pending]
        return done[0] if len(done) == 1 else torch.cat(done)

    def _finish(self, pending: Pending, index: int) -> Tensor:
        """What comes into layer `index`, on the device that computed it."""
        with entered(self._placement.stages[self._stage_of[max(0, index - 1)]].device):
            return pending()

    def embed(self, token_ids: Tensor) -> Tensor:
        """token_ids: int64 [T] on the CPU → [T, hidden] float32 there."""
        return self._embedding.look_up(token_ids)

    def _embed(self, part: Batch) -> Tensor:
        return self._embedding(part.token_ids) if part.decode is None else part.decode.x

    def _logits(self, x: Tensor) -> Tensor:
        """x: [n, hidden] → [n, vocab] float32."""
        return self._head(self._norm(x)).float()


def build_model(
    spec: ModelSpec,
    registry: Registry,
    where: torch.device | Placement,
    progress: Callable[[float], None] = lambda _: None,
    options: ForwardOptions | None = None,
) -> Deepseek2:
    """Build all modules.

    Args:
        spec: dimensions.
        registry: what each module is made of.
        where: the layers are.
        progress: told the share that is done, 0 to 1.
        options: of its forward pass.
    """
    placement = Placement.on(where, spec.n_layers)
    table = (spec.vocab_size, spec.hidden_size)
    embedding = registry.build("model.embed_tokens", EMBEDDING, table)
    layers = []
    for stage in placement.stages:
        with entered(stage.device):
            for index in stage.layers:
                progress(index / spec.n_layers)
                layers.append(_build_layer(spec, registry, index))
    with entered(placement.last):
        norm = registry.build("model.norm", NORM, (spec.hidden_size,))
        head = registry.build("lm_head", HEAD, table)
    progress(1.0)
    return Deepseek2(
        embedding,
        layers,
        norm,
        head,
        ropes=[Rope(spec.rope, spec.qk_rope_head_dim, stage.device) for stage in placement.stages],
        placement=placement,
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
