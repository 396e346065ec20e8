"""What a step needs besides weights and cache: activations, logits, and what attention computes in.

No scores, keys or values of a whole context exist at any time.
"""

from __future__ import annotations

from trimaran.config import AttnConfig
from trimaran.plan.experts import expert_workspace
from trimaran.plan.sizes import GPU_PART_TOKENS, largest_step
from trimaran.spec import ModelSpec

_GPU_SPLITS = 512
_GPU_EXPANDED = 128 << 20
"""Blocks of 64 heads that attention splits of long contexts hand over, and the most bytes of expanded weights
with the product of one piece of them (trimaran_kernels.gpu)."""

_GRAPH_NODES = 64 << 20
"""Launches of some sizes of steps, some thousands each, as the driver keeps them."""

_PASS_ROWS = 16384
_PART_BYTES = 256 << 20
_ONE_PART = 128
"""Rows of (token, head) that the CPU's attention computes in one pass, the most bytes that the parts of long
contexts hand over, and the tokens of the smallest part."""


def gpu_workspace(spec: ModelSpec, config: AttnConfig, *, has_head: bool, alone: bool) -> int:
    """Bytes on one GPU; the one with the head has the logits too, and each replays its part of steps.

    With several GPUs, steps that defer experts are not recorded: a call would cross from one to the next.
    """
    logits = _logits(spec, config) if has_head else 0
    tokens = largest_step(config, on_gpu=True)
    activations = _activations(spec, tokens, element=2) + expert_workspace(spec, config)
    step = activations + _gpu_scratch(spec, config) + logits
    replays = config.cuda_graphs == "auto" and (alone or not config.defer_experts)
    return step + (_graphs(spec, config) + logits if replays else 0)


def cpu_workspace(spec: ModelSpec, config: AttnConfig, context: int) -> int:
    """Bytes of RAM if attention runs on the CPU."""
    activations = _activations(spec, largest_step(config, on_gpu=False), element=4)
    return activations + _cpu_scratch(spec, config, context) + _logits(spec, config)


def _graphs(spec: ModelSpec, config: AttnConfig) -> int:
    """Recorded decode steps: memory of the largest one's layers, which is theirs alone, and their nodes."""
    latent, rows = spec.kv_lora_rank, config.max_running * spec.n_heads
    attention = rows * 4 * (2 * latent + spec.qk_rope_head_dim) + 4 * latent * (rows + 64 * _GPU_SPLITS)
    return _activations(spec, config.max_running, element=2) + attention + _GRAPH_NODES


def _activations(spec: ModelSpec, tokens: int, *, element: int) -> int:
    heads = spec.n_heads * (2 * spec.qk_nope_head_dim + 2 * spec.qk_rope_head_dim + spec.v_head_dim)
    widest = max(spec.dense_intermediate_size, spec.moe.n_shared * spec.moe.intermediate_size)
    return tokens * (4 * spec.hidden_size + heads + 3 * widest) * element


def _logits(spec: ModelSpec, config: AttnConfig) -> int:
    """In two types, and what drawing from them sorts: a key and an id of each token."""
    return config.max_running * spec.vocab_size * 4 * 4


def _gpu_scratch(spec: ModelSpec, config: AttnConfig) -> int:
    """Absorbed queries, mixed latents with the splits' sums, a part's expanded keys and values, weights."""
    latent, rows = spec.kv_lora_rank, largest_step(config, on_gpu=True) * spec.n_heads
    absorbed = rows * 2 * (2 * latent + spec.qk_rope_head_dim)
    splits = 4 * latent * (rows + 64 * _GPU_SPLITS)
    expanded = 2 * GPU_PART_TOKENS * spec.n_heads * (spec.qk_nope_head_dim + spec.v_head_dim)
    return absorbed + splits + expanded + 4 * rows * spec.v_head_dim + _GPU_EXPANDED


def _cpu_scratch(spec: ModelSpec, config: AttnConfig, context: int) -> int:
    """Absorbed queries and mixed latents of a pass, and its parts (kernels/csrc/attention/absorbed.cpp)."""
    width = spec.kv_lora_rank + spec.qk_rope_head_dim
    rows = min(_PASS_ROWS, largest_step(config, on_gpu=False) * spec.n_heads)
    parts = min(_PART_BYTES, 4 * spec.kv_lora_rank * spec.n_heads * 100 * config.max_running)
    return 4 * rows * (width + spec.kv_lora_rank) + (parts if context > _ONE_PART else 0)
