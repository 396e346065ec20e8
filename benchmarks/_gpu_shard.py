"""An expert service's shard in this process, for a device that makes its own hops."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from trimaran.arena import Arena, ArenaDims, ElementType, arena_directory
from trimaran.errors import KernelError, PeerError
from trimaran.gguf import GGMLType
from trimaran_attn.device_experts import DeviceExperts
from trimaran_attn.experts import Experts
from trimaran_attn.experts_client.transports import SharedArena
from trimaran_attn.metrics import Meter
from trimaran_attn.pinned import CudaPinning, SameMemory
from trimaran_kernels import ExpertEngine, ThreadPool, usable_cpus
from trimaran_kernels.hop import ArenaWorker, CallGate, HopArena

INTERMEDIATE = 32
"""Columns of an expert: next to nothing to compute."""

SLOTS = 2


@dataclass(frozen=True)
class ShardDims:
    """Of the model that the shard has a part of. `layers`: those with experts."""

    hidden: int
    n_experts: int
    top_k: int
    layers: tuple[int, ...]
    max_tokens: int
    element: ElementType


class LocalShard:
    """Implements `ArenaLink` for one shard that runs here. All layers have the same small experts.

    Args:
        dims: of the model.
        directory: where the arena goes.
        serves: whether a worker answers.
    """

    def __init__(self, dims: ShardDims, directory: Path, *, serves: bool = True) -> None:
        self.dims = dims
        self.arena = Arena(
            ArenaDims(dims.hidden, dims.top_k, dims.max_tokens, SLOTS, dims.element), directory
        )
        self.engine = _engine(dims)
        self._shared = (SharedArena(self.arena, HopArena(str(self.arena.path))),)
        # A CPU of its own for the worker, as in the service: it polls.
        self._worker = (
            ArenaWorker(HopArena(str(self.arena.path)), CallGate(self.engine), usable_cpus()[-1])
            if serves
            else None
        )

    def shared_arenas(self) -> tuple[SharedArena, ...]:
        """The one arena."""
        return self._shared

    def count_tokens(self, n_tokens: int) -> None:
        """Nobody asks."""

    def timed_out(self, shard: int) -> PeerError:
        """The shard did not answer."""
        return PeerError(f"shard {shard} did not answer in time")

    def went_away(self, shard: int) -> PeerError:
        """The arena was abandoned."""
        return PeerError(f"shard {shard} went away")

    def refused(self, shard: int, layer: int, status: int) -> KernelError:
        """The shard answered a status."""
        return KernelError(f"shard {shard} refused layer {layer}: {status}")

    def abandon(self) -> None:
        """As if the shard were lost."""
        self._shared[0].memory.abandon()

    def close(self) -> None:
        """Stop the worker, remove the arena."""
        if self._worker is not None:
            self._worker.stop()
        self.arena.close()


class NoExperts:
    """A fallback that must not be needed."""

    def submit(self, layer: int, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> object:
        """The arena could not be registered."""
        del ids, weights
        raise PeerError(f"the arena of {len(x)} tokens for layer {layer} is not registered")

    def wait(self, ticket: object) -> torch.Tensor:
        """Never reached."""
        raise PeerError(f"no such call: {ticket}")


@contextmanager
def device_experts(
    dims: ShardDims, device: torch.device, *, serves: bool = True, timeout_s: float = 5.0
) -> Iterator[tuple[DeviceExperts, LocalShard]]:
    """A device's experts, with a shard of this process behind them."""
    with tempfile.TemporaryDirectory() as folder:
        shard = LocalShard(dims, arena_directory(folder), serves=serves)
        pinning = SameMemory() if device.type == "cpu" else CudaPinning(device)
        fallback: Experts = NoExperts()
        experts = DeviceExperts(
            shard, fallback, Meter(), pinning, devices=(device,), n_slots=SLOTS, timeout_s=timeout_s
        )
        try:
            yield experts, shard
        finally:
            experts.close()
            shard.close()


def random_call(
    n: int, dims: ShardDims, device: torch.device, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, ids, weights of n tokens."""
    x = torch.randn(n, dims.hidden, device=device).to(dtype)
    ids = torch.randint(0, dims.n_experts, (n, dims.top_k), device=device, dtype=torch.int32)
    return x, ids, torch.rand(n, dims.top_k, device=device)


def _engine(dims: ShardDims) -> ExpertEngine:
    random = np.random.default_rng(1)
    pool = ThreadPool(usable_cpus(1))
    engine = ExpertEngine(pool, dims.hidden, INTERMEDIATE, dims.n_experts, dims.top_k, dims.max_tokens)

    def matrix(rows: int, columns: int) -> tuple[int, np.ndarray]:
        values = random.standard_normal((dims.n_experts, rows, columns), np.float32) / columns**0.5
        return int(GGMLType.F32), values.view(np.uint8).reshape(-1)

    gate, up = matrix(INTERMEDIATE, dims.hidden), matrix(INTERMEDIATE, dims.hidden)
    down = matrix(dims.hidden, INTERMEDIATE)
    for layer in dims.layers:
        engine.add_layer(layer, gate, up, down, 0, dims.n_experts)
    return engine
