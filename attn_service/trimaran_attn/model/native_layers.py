"""All layers of a step in one native call, where kernels of the CPU compute every part of them.

Between the parts nothing runs then: no interpreter whose memory each layer's weights throw out of the caches,
and no thread that falls asleep.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from trimaran.wire import TraceSpan
from trimaran_kernels import Decoder, DecoderLayer
from trimaran_kernels.hop import CallGate

from trimaran_attn.experts import NativeExperts
from trimaran_attn.model.mlp import NativeFeedForward, NativeNetwork
from trimaran_attn.model.native_attention import NativeLatentAttention
from trimaran_attn.model.norm import NativeRMSNorm
from trimaran_attn.model.step import Step
from trimaran_attn.stopping import StepStop, StepStoppedError

if TYPE_CHECKING:
    from trimaran_attn.model.deepseek2 import Layer

_N_TIMES = 5
_NS = 1e9


@dataclass(frozen=True)
class _Parts:
    """A layer's parts, all native."""

    layer: Layer
    attention: NativeLatentAttention
    network: NativeNetwork

    def kernel(self) -> DecoderLayer:
        whole, layer = self.attention.whole, self.layer
        assert whole is not None, "an attention in several calls"
        return DecoderLayer(
            self.attention.pool,
            layer.index,
            whole,
            layer.input_norm.weight.numpy(),
            layer.post_attention_norm.weight.numpy(),
            layer.input_norm.eps,
            self.network.gate,
            self.network.always,
        )


class NativeLayers:
    """Layers that are one kernel together.

    Args:
        parts: of all layers of the model, in order.
        experts: the routed ones of all layers; None if no layer has any.
    """

    def __init__(self, parts: Sequence[_Parts], experts: NativeExperts | None) -> None:
        self._parts = parts
        self._experts = experts
        self._decoder = Decoder([part.kernel() for part in parts])

    @property
    def is_ready(self) -> bool:
        """Whether they can be computed so now: routed experts may be elsewhere."""
        return self._experts is None or self._experts.calls is not None

    def __call__(self, x: Tensor, step: Step, stop: StepStop) -> Tensor:
        """x: [T, hidden] float32 → the same behind the last layer.

        Raises:
            TrimaranError: the experts refused their tokens.
            StepStoppedError: `stop` ended the step between two layers.
        """
        x = x.clone()
        ragged = self._parts[0].attention.ragged(step)
        times = np.zeros((len(self._parts), _N_TIMES), np.int64)
        computed, status = self._decoder(
            x.numpy(),
            ragged.cos,
            ragged.sin,
            ragged.slots,
            [step.cache.native(part.layer.index) for part in self._parts],
            ragged.segments,
            ragged.page_table,
            self._calls(),
            times,
            stop.flag,
        )
        if status != 0:
            raise self._error(status, self._parts[computed])
        if computed < len(self._parts):
            raise StepStoppedError
        self._tell(times, step, len(x))
        return x

    def _calls(self) -> CallGate | None:
        return None if self._experts is None else self._experts.calls

    def _error(self, status: int, parts: _Parts) -> Exception:
        if self._experts is None or parts.network.experts is None:
            return MemoryError(f"no memory for the network of layer {parts.layer.index}")
        return self._experts.error(status, parts.layer.index)

    def _tell(self, times: NDArray[np.int64], step: Step, tokens: int) -> None:
        if self._experts is not None:
            took = times[:, 3] - times[:, 2]
            routed = [part.network.experts is not None for part in self._parts]
            self._experts.took((took[routed] / _NS).tolist())
        if step.tracer.active:
            for span in self._spans(times, tokens):
                step.tracer.add(span)

    def _spans(self, times: NDArray[np.int64], tokens: int) -> Iterator[TraceSpan]:
        """What a step's parts took, as `Layer.begin` records it."""
        thread = threading.current_thread().name
        for part, (attention, gate, experts, always, end) in zip(self._parts, times.tolist(), strict=True):
            index, network = part.layer.index, part.network
            yield TraceSpan(thread, "attention", attention, gate, index, tokens)
            yield TraceSpan(thread, "feed forward", gate, end, index, tokens)
            if network.gate is not None:
                yield TraceSpan(thread, "gate", gate, experts, index)
                yield TraceSpan(thread, "experts", experts, always, index)
            if network.gate is not None and network.always is not None:
                yield TraceSpan(thread, "shared experts", always, end, index)


def native_layers(layers: Sequence[Layer]) -> NativeLayers | None:
    """The layers as one kernel, if every part of each is one and all share their experts."""
    parts = [_parts_of(layer) for layer in layers]
    native = [part for part in parts if part is not None]
    if not native or len(native) < len(parts):
        return None
    experts = [part.network.experts for part in native if part.network.experts is not None]
    if any(other is not experts[0] for other in experts):
        return None
    return NativeLayers(native, experts[0] if experts else None)


def _parts_of(layer: Layer) -> _Parts | None:
    norms = (layer.input_norm, layer.post_attention_norm)
    attention, rest = layer.attention, layer.feed_forward
    if not all(isinstance(norm, NativeRMSNorm) for norm in norms):
        return None
    if not isinstance(attention, NativeLatentAttention) or attention.whole is None:
        return None
    network = rest.native() if isinstance(rest, NativeFeedForward) else None
    return None if network is None else _Parts(layer, attention, network)
