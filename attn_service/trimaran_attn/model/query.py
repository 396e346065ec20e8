"""Hidden vectors to queries."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from trimaran_attn.model.kinds import LINEAR, NORM
from trimaran_attn.model.linear import Linear
from trimaran_attn.model.norm import RMSNorm
from trimaran_attn.registry import Site


class Query(Protocol):
    """Hidden vectors to the queries of all heads."""

    def __call__(self, x: Tensor) -> Tensor:
        """x: [T, hidden] → [T, heads × (nope + rope)]."""
        ...


class LoraQuery:
    """Wqb·rms(Wqa·x): V2, V3. `down` is Wqa, `up` is Wqb."""

    def __init__(self, down: Linear, norm: RMSNorm, up: Linear) -> None:
        self.down = down
        self.norm = norm
        self.up = up

    def __call__(self, x: Tensor) -> Tensor:
        """x: [T, hidden] → [T, heads × (nope + rope)]."""
        return self.up(self.norm(self.down(x)))


def build_query(site: Site) -> Query:
    """The attention's query projections; `site` is the attention's."""
    spec = site.spec
    width = spec.n_heads * (spec.qk_nope_head_dim + spec.qk_rope_head_dim)
    if spec.q_lora_rank is None:
        return site.child("q_proj", LINEAR, (width, spec.hidden_size))
    return LoraQuery(
        site.child("q_a_proj", LINEAR, (spec.q_lora_rank, spec.hidden_size)),
        site.child("q_a_layernorm", NORM, (spec.q_lora_rank,)),
        site.child("q_b_proj", LINEAR, (width, spec.q_lora_rank)),
    )
