"""The modules of a model, as its published PyTorch code names them, and what each kind can be made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from trimaran.spec import ModelSpec

IMPLEMENTATIONS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "embedding": ("quantised",),
        "norm": ("rms",),
        "linear": ("quantised", "packed", "dense", "gpu"),
        "head": ("quantised", "packed", "dense", "gpu"),
        "attention": ("auto", "naive", "absorbed"),
        "mlp": ("swiglu",),
        "moe": ("moe",),
        "gate": ("topk",),
        "experts": ("service",),
        "maps": (),
        "rope": (),
        "layer": (),
        "model": (),
    }
)
"""By kind, the names that the attention service registers. The last four are parts of other modules."""

ON_CPU = frozenset({"quantised", "packed"})
"""Implementations of matrices that only a CPU has."""

ON_GPU = frozenset({"gpu"})
MATRICES = frozenset({"linear", "head"})


@dataclass(frozen=True)
class Module:
    """A module's path and kind."""

    path: str
    kind: str

    @property
    def layer(self) -> int | None:
        """The layer that it is in."""
        parts = self.path.split(".")
        return int(parts[2]) if parts[:2] == ["model", "layers"] else None


def modules_of(spec: ModelSpec) -> tuple[Module, ...]:
    """All modules; each comes before those below it."""
    return (
        Module("model", "model"),
        Module("model.embed_tokens", "embedding"),
        *(module for layer in range(spec.n_layers) for module in _layer(spec, layer)),
        Module("model.norm", "norm"),
        Module("lm_head", "head"),
    )


def _layer(spec: ModelSpec, layer: int) -> Iterator[Module]:
    path = f"model.layers.{layer}"
    yield Module(path, "layer")
    yield Module(f"{path}.input_layernorm", "norm")
    yield from _attention(spec, f"{path}.self_attn")
    yield Module(f"{path}.post_attention_layernorm", "norm")
    if layer < spec.n_dense_layers:
        yield from _mlp(f"{path}.mlp")
        return
    yield Module(f"{path}.mlp", "moe")
    yield Module(f"{path}.mlp.gate", "gate")
    yield Module(f"{path}.mlp.experts", "experts")
    if spec.moe.n_shared:
        yield from _mlp(f"{path}.mlp.shared_experts")


def _attention(spec: ModelSpec, path: str) -> Iterator[Module]:
    yield Module(path, "attention")
    if spec.q_lora_rank is None:
        yield Module(f"{path}.q_proj", "linear")
    else:
        yield Module(f"{path}.q_a_proj", "linear")
        yield Module(f"{path}.q_a_layernorm", "norm")
        yield Module(f"{path}.q_b_proj", "linear")
    yield Module(f"{path}.kv_a_proj_with_mqa", "linear")
    yield Module(f"{path}.kv_a_layernorm", "norm")
    yield Module(f"{path}.kv_b_proj", "maps")
    yield Module(f"{path}.o_proj", "linear")
    yield Module(f"{path}.rotary_emb", "rope")


def _mlp(path: str) -> Iterator[Module]:
    yield Module(path, "mlp")
    for name in ("gate_proj", "up_proj", "down_proj"):
        yield Module(f"{path}.{name}", "linear")
