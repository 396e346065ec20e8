"""Which type each tensor gets in a named mix such as Q4_K_M.

The names and ideas are llama.cpp's: norms, router and biases stay in float32, and the tensors whose errors
weigh most get more bits than the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from trimaran.gguf.types import GGMLType as T

KEPT = ("ffn_gate_inp.weight", "exp_probs_b.bias")
"""Tensors that stay in float32 whatever the mix, by the end of their names; so do all with one dimension."""

_SENSITIVE = ("attn_v_b.weight", "attn_kv_b.weight", "attn_k_b.weight")
_DOWN = ("ffn_down.weight", "ffn_down_shexp.weight", "ffn_down_exps.weight")

_NARROW = {
    T.Q2_K: T.Q4_0,
    T.Q3_K: T.Q4_0,
    T.Q4_K: T.Q5_0,
    T.Q5_K: T.Q5_1,
    T.Q6_K: T.Q8_0,
    T.IQ4_XS: T.IQ4_NL,
    T.IQ1_S: T.IQ4_NL,
    T.IQ1_M: T.IQ4_NL,
    T.IQ2_XXS: T.IQ4_NL,
    T.IQ2_XS: T.IQ4_NL,
    T.IQ2_S: T.IQ4_NL,
    T.IQ3_XXS: T.IQ4_NL,
    T.IQ3_S: T.IQ4_NL,
}
"""What a tensor gets instead if its rows do not divide into blocks of 256."""

TypeChoice = Callable[[str, tuple[int, ...]], T]
"""(tensor name, shape) → type."""


@dataclass(frozen=True)
class Mix:
    """The types of a mix: `base` for most matrices, others for those that matter more.

    `down` is for the down projections of the layers in which errors weigh most.
    """

    base: T
    output: T
    embedding: T
    sensitive: T
    down: T

    def choose(self, name: str, shape: tuple[int, ...], n_layers: int) -> T:
        """The type of a tensor of a model with `n_layers`, one whose blocks its rows divide into."""
        if len(shape) == 1 or name.endswith(KEPT):
            return T.F32
        return fitting(self._wanted(name, n_layers), shape[-1])

    def _wanted(self, name: str, n_layers: int) -> T:
        if name == "output.weight":
            return self.output
        if name == "token_embd.weight":
            return self.embedding
        if name.endswith(_SENSITIVE):
            return self.sensitive
        if name.endswith(_DOWN) and _weighs_more(int(name.split(".")[1]), n_layers):
            return self.down
        return self.base


def _weighs_more(layer: int, n_layers: int) -> bool:
    """The first and last eighth of the layers, and every third one between."""
    eighth = n_layers // 8
    return layer < eighth or layer >= 7 * n_layers // 8 or (layer - eighth) % 3 == 2


def fitting(kind: T, row: int) -> T:
    """`kind`, or the nearest type whose blocks divide a row of `row` values; float16 if none does."""
    if row % kind.block_size:
        kind = _NARROW.get(kind, T.F16)
    return kind if row % kind.block_size == 0 else T.F16


def _uniform(kind: T) -> Mix:
    return Mix(base=kind, output=kind, embedding=kind, sensitive=kind, down=kind)


def _low_bit(kind: T) -> Mix:
    return Mix(base=kind, output=T.Q6_K, embedding=T.Q4_K, sensitive=T.Q6_K, down=kind)


MIXES: dict[str, Mix] = {
    **{kind.name: _uniform(kind) for kind in (T.F32, T.F16, T.BF16, T.Q8_0)},
    **{kind.name: _uniform(kind) for kind in (T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q6_K)},
    "Q2_K": Mix(base=T.Q2_K, output=T.Q6_K, embedding=T.Q4_K, sensitive=T.Q4_K, down=T.Q3_K),
    "Q3_K_M": Mix(base=T.Q3_K, output=T.Q6_K, embedding=T.Q4_K, sensitive=T.Q5_K, down=T.Q4_K),
    "Q4_K_M": Mix(base=T.Q4_K, output=T.Q6_K, embedding=T.Q4_K, sensitive=T.Q8_0, down=T.Q6_K),
    "Q5_K_M": Mix(base=T.Q5_K, output=T.Q6_K, embedding=T.Q5_K, sensitive=T.Q8_0, down=T.Q6_K),
    "IQ4_XS": Mix(base=T.IQ4_XS, output=T.Q6_K, embedding=T.Q4_K, sensitive=T.Q6_K, down=T.IQ4_XS),
    "IQ4_NL": Mix(base=T.IQ4_NL, output=T.Q6_K, embedding=T.Q4_K, sensitive=T.Q6_K, down=T.IQ4_NL),
    **{kind.name: _low_bit(kind) for kind in (T.IQ1_S, T.IQ1_M, T.IQ2_XXS, T.IQ2_XS, T.IQ2_S)},
    **{kind.name: _low_bit(kind) for kind in (T.IQ3_XXS, T.IQ3_S)},
}


def mix_named(name: str) -> Mix:
    """A mix by name, in any case; ValueError with the known names otherwise."""
    try:
        return MIXES[name.upper()]
    except KeyError:
        raise ValueError(f"unknown mix {name!r}; known: {', '.join(MIXES)}") from None
