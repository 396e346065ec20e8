"""A DeepSeek model's dimensions, as plain numbers read from its file."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Literal, NoReturn

from trimaran.errors import ModelFileError
from trimaran.gguf.file import GGUFFile
from trimaran.model_tensors import check_tensors

ARCHITECTURE = "deepseek2"

_UNWRITTEN_GROUPS = {("sigmoid", 256): (8, 4), ("softmax", 160): (8, 3)}
"""Groups and groups used of V3 and V2, by gate and number of experts: older files do not say."""


@dataclass(frozen=True)
class RopeSpec:
    """Rotary embedding over the last `qk_rope_head_dim` values of each query head, interleaved pairs.

    `factor` 1 is plain RoPE; above it, YaRN (arXiv 2309.00071). `log_multiplier` is 0.1 × mscale_all_dim.
    """

    theta: float
    factor: float = 1.0
    original_context: int = 0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    log_multiplier: float = 0.0


@dataclass(frozen=True)
class MoeSpec:
    """The mixture of experts of every layer from `ModelSpec.n_dense_layers` on.

    gate: how router logits become scores. group_score: how a group of experts is ranked, by its best expert
    ("max", V2) or the sum of its two best ("top2", V3); n_groups 1 means no groups.
    """

    n_experts: int
    top_k: int
    intermediate_size: int
    n_shared: int
    gate: Literal["softmax", "sigmoid"]
    normalise_weights: bool
    weights_scale: float
    n_groups: int
    n_groups_used: int
    group_score: Literal["max", "top2"]


@dataclass(frozen=True)
class ModelSpec:
    """Dimensions of a `deepseek2` model, in elements. `q_lora_rank` None means a plain query matrix."""

    name: str
    n_layers: int
    n_dense_layers: int
    hidden_size: int
    dense_intermediate_size: int
    vocab_size: int
    context_length: int
    n_heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    rms_eps: float
    rope: RopeSpec
    moe: MoeSpec


def read_spec(file: GGUFFile) -> ModelSpec:
    """Read a model's dimensions from its metadata and check that its tensors agree with them.

    Files of all ages are read: the keys that older converters left out are derived from the tensors.

    Raises:
        ModelFileError: another architecture, a key that is missing or makes no sense, a tensor that is
            missing or has another shape. One line, which names the key or the tensor.
    """
    spec = _Reader(file).spec()
    check_tensors(file, spec)
    return spec


class _Reader:
    """Reads `deepseek2.*` keys; every message names the key."""

    def __init__(self, file: GGUFFile) -> None:
        self._file = file
        self._metadata = file.metadata
        architecture = self._metadata.text("general.architecture")
        if architecture != ARCHITECTURE:
            raise ModelFileError(
                f"{file.path}: the model's architecture is {architecture!r}",
                remedy=f"supported is {ARCHITECTURE!r}: DeepSeek-V2, V2-Lite, V3, R1, Kimi-K2, Moonlight",
            )

    def spec(self) -> ModelSpec:
        rope_dim = self._size("rope.dimension_count")
        if rope_dim % 2:
            self._fail("rope.dimension_count", f"{rope_dim} is odd")
        key_dim = self._mla_size("key")
        if key_dim <= rope_dim:
            self._fail("attention.key_length", f"{key_dim} leaves no room beside {rope_dim} rotated values")
        return ModelSpec(
            name=self._metadata.text("general.name", self._file.path.stem),
            n_layers=self._n_layers(),
            n_dense_layers=self._size("leading_dense_block_count", default=0, least=0),
            hidden_size=self._size("embedding_length"),
            dense_intermediate_size=self._size("feed_forward_length"),
            vocab_size=self._vocab_size(),
            context_length=self._size("context_length"),
            n_heads=self._size("attention.head_count"),
            q_lora_rank=self._size("attention.q_lora_rank", default=0, least=0) or None,
            kv_lora_rank=self._size("attention.kv_lora_rank"),
            qk_nope_head_dim=key_dim - rope_dim,
            qk_rope_head_dim=rope_dim,
            v_head_dim=self._mla_size("value"),
            rms_eps=self._positive("attention.layer_norm_rms_epsilon"),
            rope=self._rope(),
            moe=self._moe(),
        )

    def _n_layers(self) -> int:
        """Layers of the main model: the count may include layers that only predict further tokens (MTP)."""
        total, extra = self._size("block_count"), self._size("nextn_predict_layers", default=0, least=0)
        if extra == 0:
            return total
        if extra >= total:
            self._fail("nextn_predict_layers", f"{extra} of {total} layers")
        names = self._file.tensors
        last = f"blk.{total - 1}."
        included = any(name.startswith(last + "nextn.") for name in names)
        stripped = last + "attn_norm.weight" not in names
        return total - extra if included or stripped else total

    def _vocab_size(self) -> int:
        tokens = "tokenizer.ggml.tokens"
        listed = self._metadata.length(tokens) if tokens in self._metadata else 0
        return self._size("vocab_size", default=listed or self._file.tensor("token_embd.weight").shape[0])

    def _mla_size(self, what: str) -> int:
        """Per-head size of keys or values: under *_mla where the plain key describes the latent."""
        plain = f"attention.{what}_length"
        return self._size(f"{plain}_mla" if self._key(f"{plain}_mla") in self._metadata else plain)

    def _rope(self) -> RopeSpec:
        theta = self._positive("rope.freq_base", 10000.0)
        kind = self._metadata.text(self._key("rope.scaling.type"), "none")
        factor = self._positive("rope.scaling.factor", 1.0)
        if kind == "none" or factor == 1.0:
            return RopeSpec(theta=theta)
        if kind != "yarn":
            self._fail("rope.scaling.type", f"{kind!r} is not supported, only 'yarn'")
        if factor < 1.0:
            self._fail("rope.scaling.factor", f"{factor} is below 1")
        return RopeSpec(
            theta=theta,
            factor=factor,
            original_context=self._size("rope.scaling.original_context_length"),
            beta_fast=self._positive("rope.scaling.yarn_beta_fast", 32.0),
            beta_slow=self._positive("rope.scaling.yarn_beta_slow", 1.0),
            log_multiplier=self._finite("rope.scaling.yarn_log_multiplier", 0.0),
        )

    def _moe(self) -> MoeSpec:
        n_experts, top_k = self._size("expert_count"), self._size("expert_used_count")
        gate = self._gate()
        default_groups = _UNWRITTEN_GROUPS.get((gate, n_experts), (1, 1))
        n_groups = self._size("expert_group_count", default=default_groups[0], least=0) or 1
        n_used = n_groups
        if n_groups > 1:
            n_used = self._size("expert_group_used_count", default=default_groups[1])
        moe = MoeSpec(
            n_experts=n_experts,
            top_k=top_k,
            intermediate_size=self._size("expert_feed_forward_length"),
            n_shared=self._size("expert_shared_count", default=0, least=0),
            gate=gate,
            normalise_weights=self._metadata.flag(self._key("expert_weights_norm"), gate == "sigmoid"),
            weights_scale=self._finite("expert_weights_scale", 0.0) or 1.0,  # 0 is written for "no scale"
            n_groups=n_groups,
            n_groups_used=n_used,
            group_score="top2" if gate == "sigmoid" else "max",
        )
        self._check_groups(moe)
        return moe

    def _gate(self) -> Literal["softmax", "sigmoid"]:
        key = self._key("expert_gating_func")
        number = self._metadata.integer(key, 0)
        if number == 0:  # older files: only the sigmoid gate has a bias
            biased = any(name.endswith(".exp_probs_b.bias") for name in self._file.tensors)
            return "sigmoid" if biased else "softmax"
        if number not in (1, 2):
            self._fail("expert_gating_func", f"{number} is not supported, only 1 (softmax) and 2 (sigmoid)")
        return "softmax" if number == 1 else "sigmoid"

    def _check_groups(self, moe: MoeSpec) -> None:
        in_group, rest = divmod(moe.n_experts, moe.n_groups)
        least = 2 if moe.group_score == "top2" and moe.n_groups > 1 else 1
        if rest or in_group < least:
            self._fail("expert_group_count", f"{moe.n_experts} experts cannot form {moe.n_groups} groups")
        if moe.n_groups_used > moe.n_groups:
            self._fail("expert_group_used_count", f"{moe.n_groups_used} of {moe.n_groups} groups")
        if moe.top_k > moe.n_groups_used * in_group:
            self._fail("expert_used_count", f"{moe.top_k} of {moe.n_groups_used * in_group} eligible experts")

    @staticmethod
    def _key(name: str) -> str:
        return f"{ARCHITECTURE}.{name}"

    def _size(self, name: str, default: int | None = None, least: int = 1) -> int:
        value = self._metadata.integer(self._key(name), default)
        if not least <= value < 1 << 31:
            self._fail(name, f"{value} makes no sense")
        return value

    def _finite(self, name: str, default: float | None = None) -> float:
        value = self._metadata.number(self._key(name), default)
        if not isfinite(value):
            self._fail(name, f"{value} is no finite number")
        return value

    def _positive(self, name: str, default: float | None = None) -> float:
        value = self._finite(name, default)
        if value <= 0.0:
            self._fail(name, f"{value} is not positive")
        return value

    def _fail(self, name: str, problem: str) -> NoReturn:
        raise ModelFileError(f"{self._file.path}: metadata '{self._key(name)}': {problem}")
