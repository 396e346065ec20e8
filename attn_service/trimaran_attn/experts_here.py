"""The routed experts in this process, by the kernels that the expert service has."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import trimaran_kernels
from torch import Tensor
from trimaran.errors import KernelError, TrimaranError
from trimaran_kernels import ExpertEngine, HugePages, ThreadPool
from trimaran_kernels.hop import CallGate

from trimaran_attn.experts_client.statuses import meaning
from trimaran_attn.registry import Site
from trimaran_attn.weights import Shape

Matrix = tuple[int, np.ndarray[tuple[int], np.dtype[np.uint8]], bool]


class ExpertsHere:
    """All layers' experts, computed when they are submitted.

    Args:
        pool: threads.
        isa: best instruction set to use.
        packs: whether weights are packed, for int8 activations; else they are read from the mapped file, and
            activations are float32.
        max_tokens: of one call.
    """

    def __init__(self, pool: ThreadPool, isa: str, *, packs: bool, max_tokens: int) -> None:
        self._pool = pool
        self._isa = isa
        self._packs = packs
        self._max_tokens = max_tokens
        self._memory = HugePages()
        self._engine: ExpertEngine | None = None
        self._calls: CallGate | None = None

    def take(self, site: Site) -> ExpertsHere:
        """Take a layer's experts; this object then computes them too."""
        moe, hidden = site.spec.moe, site.spec.hidden_size
        if self._engine is None:
            width, count = moe.intermediate_size, moe.n_experts
            self._engine = ExpertEngine(
                self._pool, hidden, width, count, moe.top_k, max_tokens=self._max_tokens, isa=self._isa
            )
            self._calls = CallGate(self._engine, gathers=False, rests=False)
        wide, narrow = (moe.intermediate_size, hidden), (hidden, moe.intermediate_size)
        shapes = {"gate_proj": wide, "up_proj": wide, "down_proj": narrow}
        gate, up, down = (self._matrix(site, name, (moe.n_experts, *shape)) for name, shape in shapes.items())
        self._engine.add_layer(site.layer, gate, up, down, 0, moe.n_experts)
        return self

    def submit(self, layer: int, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """Compute at once; the result, [T, hidden] float32 on the CPU, is the ticket.

        Raises:
            KernelError: the kernels refuse it.
        """
        assert self._calls is not None, "no layer was taken"
        values = x.detach().to("cpu", torch.float32).contiguous()
        out = torch.empty_like(values)
        status = self._calls.run(
            layer,
            values.numpy(),
            ids.to("cpu", torch.int32).contiguous().numpy(),
            weights.to("cpu", torch.float32).contiguous().numpy(),
            out.numpy(),
        )
        if status != 0:
            raise self.error(status, layer)
        return out

    @property
    def calls(self) -> CallGate | None:
        """See `NativeExperts.calls`."""
        return self._calls

    def took(self, seconds: Sequence[float]) -> None:
        """Nobody counts."""

    def error(self, status: int, layer: int) -> TrimaranError:
        """See `NativeExperts.error`."""
        return KernelError(f"layer {layer}: {meaning(status)}")

    def wait(self, ticket: Tensor) -> Tensor:
        """The result."""
        return ticket

    def _matrix(self, site: Site, name: str, shape: Shape) -> Matrix:
        path = f"{site.path}.{name}"
        weight = site.weights.quantised(path, shape)
        n_experts, rows, columns = shape
        size = trimaran_kernels.packed_bytes(int(weight.type), rows, columns)
        if not self._packs or size is None:
            return int(weight.type), weight.raw, False
        packed = self._memory.take(n_experts * size)
        parts = zip(weight.raw.reshape(n_experts, -1), packed.reshape(n_experts, size), strict=True)
        for raw, place in parts:
            trimaran_kernels.pack(self._pool, int(weight.type), raw, rows, columns, place)
        site.weights.forget(path)
        return int(weight.type), packed, True
