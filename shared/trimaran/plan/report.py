"""A finished plan: parts and places, budgets, speed, and what stands against it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trimaran.plan.sizes import PAGE_TOKENS
from trimaran.units import format_bytes

Place = Literal["GPU", "RAM"]


@dataclass(frozen=True)
class Item:
    """A part of the model. `nbytes` is what it takes where it goes; `file_bytes` its size in the file."""

    part: str
    place: Place
    types: str
    file_bytes: int
    nbytes: int


@dataclass(frozen=True)
class Budget:
    """Bytes needed and there, of one kind of memory."""

    needed: int
    available: int

    @property
    def spare(self) -> int:
        """What is left; negative if it does not fit."""
        return self.available - self.needed

    @property
    def shortage(self) -> str:
        """What is missing, in words."""
        return (
            f"{format_bytes(self.needed)} are needed, {format_bytes(self.available)} are there,"
            f" {format_bytes(-self.spare)} too little"
        )


@dataclass(frozen=True)
class Bandwidth:
    """Bytes a second. None: unknown."""

    ram: float | None = None
    gpu: float | None = None


@dataclass(frozen=True)
class Speed:
    """Weights read for a token of one request, and the tokens a second that bandwidth allows at most."""

    ram_bytes: int
    gpu_bytes: int
    tokens_per_second: float | None


@dataclass(frozen=True)
class GpuShare:
    """What one GPU holds.

    Attributes:
        number: of the GPU, as in cuda:N.
        name: of the card.
        first_layer, last_layer: which layers it computes; the last GPU has the head too.
        weights, kv_bytes, workspace: bytes of its layers' weights, of their cache, of passing tensors.
        kv_per_token: bytes of the cache per token.
        experts: bytes for routed experts of its layers.
        budget: their sum with CUDA's own, and what there is.
    """

    number: int
    name: str
    first_layer: int
    last_layer: int
    weights: int
    kv_bytes: int
    workspace: int
    kv_per_token: int
    experts: int
    budget: Budget

    @property
    def layers(self) -> range:
        """Its layers."""
        return range(self.first_layer, self.last_layer + 1)

    @property
    def fitting_context(self) -> int:
        """Tokens, in whole pages, that fit beside the weights; 0 or less if these alone do not."""
        room = self.budget.spare + self.kv_bytes
        return room // self.kv_per_token // PAGE_TOKENS * PAGE_TOKENS


@dataclass(frozen=True)
class Plan:
    """The whole plan.

    Attributes:
        items: the parts of the model, and where they go.
        skipped: bytes of the file that nobody uses, e.g. layers for multi-token prediction.
        kv_per_token: bytes that the latent cache takes per token.
        context: tokens that it is planned for.
        wanted_context: tokens that the configuration, or else the model, asks for.
        kv_bytes, workspace: bytes of the cache and of passing tensors, on the attention service's devices.
        gpu: the sum over the GPUs; None when attention runs on the CPU.
        gpus: what each of them holds, in the order of the layers.
        services_in_ram: attention services whose weights and caches `ram` counts, if they run on the CPU.
        re_encoded: types of matrices that the GPU has no kernel for and holds as Q8_0.
        experts: bytes for routed experts in the attention service, over all its devices.
    """

    model: str
    device: str
    items: tuple[Item, ...]
    skipped: int
    kv_per_token: int
    context: int
    wanted_context: int
    kv_bytes: int
    workspace: int
    gpu: Budget | None
    gpus: tuple[GpuShare, ...]
    ram: Budget
    services_in_ram: int
    re_encoded: tuple[str, ...]
    speed: Speed
    experts: int = 0

    def problems(self) -> list[str]:
        """Why it cannot work, one sentence each; empty if it fits."""
        found = [self._gpu_problem(share) for share in self.gpus if share.budget.spare < 0]
        if self.ram.spare < 0:
            found.append(
                f"RAM: {self.ram.shortage}; take a smaller quantisation of the model, split the experts"
                " over several hosts (experts.endpoints), or add memory"
            )
        return found

    def _gpu_problem(self, share: GpuShare) -> str:
        several = len(self.gpus) > 1
        name = f"GPU cuda:{share.number}" if several else "GPU"
        held = f", layers {share.first_layer}-{share.last_layer}" if several else ""
        remedy = f"take {'more or larger GPUs' if several else 'a larger GPU'}, or --device cpu"
        experts = f", {format_bytes(share.experts)} routed experts" if share.experts else ""
        fits = min(other.fitting_context for other in self.gpus)
        if fits > 0:
            remedy = f"lower the context (--context {fits} fits), or {remedy}"
        if share.experts and share.budget.spare + share.experts >= 0:
            remedy = f"lower attn.gpu_experts, or {remedy}"
        return (
            f"{name}: {share.budget.shortage} ({format_bytes(share.weights)} weights{held},"
            f" {format_bytes(share.kv_bytes)} cache of {self.context} tokens,"
            f" {format_bytes(share.workspace)} workspace{experts}); {remedy}"
        )
