"""Random weights that keep activations sane: the residual stream does not fade, explode or turn constant.

Every matrix keeps the variance of a normed input. A tensor's numbers depend on the seed and its name alone,
so that two files of the same seed hold the same model whatever their layout and types.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

from trimaran.model_tensors import MlaLayout, Shapes, global_shapes, layer_shapes
from trimaran.spec import ModelSpec

Floats = NDArray[np.float32]

LOGIT_STD = 3.0
ROUTER_LOGIT_STD = 1.5
SELECTION_BIAS_STD = 0.1
NORM_STD = 0.1


def tensor_shapes(spec: ModelSpec, layout: MlaLayout) -> Shapes:
    """All tensors of a model, in the order of the file."""
    shapes = global_shapes(spec)
    for layer in range(spec.n_layers):
        shapes |= layer_shapes(spec, layer, layout, biased_gate=spec.moe.gate == "sigmoid")
    return shapes


def random_weights(spec: ModelSpec, name: str, shape: tuple[int, ...], seed: int) -> Floats:
    """One tensor, float32 of `shape`."""
    if name.endswith(("attn_k_b.weight", "attn_v_b.weight")):
        return _split_kv_b(spec, name, seed)
    values = np.random.default_rng((seed, zlib.crc32(name.encode()))).standard_normal(shape, np.float32)
    if name.endswith("norm.weight"):
        return 1 + NORM_STD * values
    return values * np.float32(weight_std(spec, name, shape))


def weight_std(spec: ModelSpec, name: str, shape: tuple[int, ...]) -> float:
    """Standard deviation of a matrix's values."""
    if name == "token_embd.weight":
        return 1.0
    if name.endswith("exp_probs_b.bias"):
        return SELECTION_BIAS_STD
    inputs = spec.kv_lora_rank if name.endswith("attn_k_b.weight") else shape[-1]  # that one is transposed
    keep = float(inputs**-0.5)
    if name == "output.weight":
        return LOGIT_STD * keep
    if name.endswith("ffn_gate_inp.weight"):
        return ROUTER_LOGIT_STD * keep
    if name.endswith("ffn_down_exps.weight"):
        return keep / spec.moe.weights_scale
    return keep


def _split_kv_b(spec: ModelSpec, name: str, seed: int) -> Floats:
    """The keys' (transposed) or the values' part of the matrix that the other layout stores whole."""
    layer = name.rsplit(".", 2)[0]
    nope, latent = spec.qk_nope_head_dim, spec.kv_lora_rank
    whole = (spec.n_heads * (nope + spec.v_head_dim), latent)
    heads = random_weights(spec, f"{layer}.attn_kv_b.weight", whole, seed).reshape(spec.n_heads, -1, latent)
    if name.endswith("attn_k_b.weight"):
        return np.ascontiguousarray(heads[:, :nope].transpose(0, 2, 1))
    return np.ascontiguousarray(heads[:, nope:])
