"""The kinds of modules: a path and a kind is what a rule decides on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trimaran_attn.registry import Kind

if TYPE_CHECKING:
    from trimaran_attn.experts import Experts
    from trimaran_attn.model.attention import Attention
    from trimaran_attn.model.embedding import Embedding
    from trimaran_attn.model.gate import Gate
    from trimaran_attn.model.linear import Linear
    from trimaran_attn.model.mlp import FeedForward
    from trimaran_attn.model.norm import RMSNorm

EMBEDDING: Kind[Embedding] = Kind("embedding")
NORM: Kind[RMSNorm] = Kind("norm")
LINEAR: Kind[Linear] = Kind("linear")
HEAD: Kind[Linear] = Kind("head")
ATTENTION: Kind[Attention] = Kind("attention")
MLP: Kind[FeedForward] = Kind("mlp")
MOE: Kind[FeedForward] = Kind("moe")
GATE: Kind[Gate] = Kind("gate")
EXPERTS: Kind[Experts] = Kind("experts")
