"""Which layers are on which device, and in which order the parts of a step go through them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from trimaran.module_names import LAYER
from trimaran.plan import Plan


@dataclass(frozen=True)
class Stage:
    """Consecutive layers on one device."""

    device: torch.device
    layers: range


@dataclass(frozen=True)
class Placement:
    """A model on one device or several: stages in the order of the layers, which they cover."""

    stages: tuple[Stage, ...]

    @classmethod
    def on(cls, where: torch.device | Placement, n_layers: int) -> Placement:
        """A placement as it is; a device for the whole model."""
        return where if isinstance(where, Placement) else cls((Stage(where, range(n_layers)),))

    @classmethod
    def planned(cls, plan: Plan, n_layers: int) -> Placement:
        """What a plan says: its GPUs, or the CPU."""
        stages = [Stage(torch.device("cuda", share.number), share.layers) for share in plan.gpus]
        return cls(tuple(stages)) if stages else cls.on(torch.device("cpu"), n_layers)

    @property
    def first(self) -> torch.device:
        """Where tokens enter."""
        return self.stages[0].device

    @property
    def last(self) -> torch.device:
        """Where the head is."""
        return self.stages[-1].device

    def stage_of(self, layer: int) -> int:
        """Index of the stage that has a layer."""
        return next(index for index, stage in enumerate(self.stages) if layer in stage.layers)

    def device_of(self, path: str) -> torch.device:
        """Of a module: a layer's; the first for embeddings, the last for what follows the layers."""
        match = LAYER.match(path)
        if match is not None:
            return self.stages[self.stage_of(int(match[1]))].device
        return self.first if path == "model.embed_tokens" else self.last

    def __str__(self) -> str:
        """`cuda:0`, or `cuda:0 (layers 0-30), cuda:1 (layers 31-60)`."""
        if len(self.stages) == 1:
            return str(self.first)
        return ", ".join(f"{s.device} (layers {s.layers[0]}-{s.layers[-1]})" for s in self.stages)


def entered(device: torch.device) -> AbstractContextManager[object]:
    """The current device while its kernels are launched: Triton launches on no other."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def turns(stages: Sequence[range], n_parts: int) -> Iterator[tuple[int, int]]:
    """(layer, part) in the order in which a step's parts are computed.

    On one device all parts go through a layer before the next: the experts compute one part while the device
    computes another. On several devices the parts form groups, of two at least for the same reason, and each
    group follows the one before it at the distance of a stage: then all devices have work. In every layer the
    parts go in order, since a later part of a prompt reads the latents of the earlier ones.

    Args:
        stages: the layers of each device.
        n_parts: of the step.
    """
    n_layers = stages[-1].stop
    n_groups = max(1, min(len(stages), n_parts // 2))
    lag = max(len(stage) for stage in stages)
    delays = [part * n_groups // n_parts * lag for part in range(n_parts)]
    for tick in range(n_layers + delays[-1]):
        for part, delay in enumerate(delays):
            if 0 <= tick - delay < n_layers:
                yield tick - delay, part
