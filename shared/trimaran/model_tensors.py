"""The tensors of a `deepseek2` model: their names in the file and their shapes (in numpy order)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from trimaran.errors import ModelFileError
from trimaran.gguf.directory import TensorInfo
from trimaran.gguf.file import GGUFFile

if TYPE_CHECKING:  # spec.py checks tensors when it reads a spec
    from trimaran.spec import ModelSpec

MlaLayout = Literal["kv_b", "split"]
"""How the latent's up-projection is stored: one matrix, or keys (transposed) and values apart, per head."""

Shapes = dict[str, tuple[int, ...]]


def mla_layout(file: GGUFFile, layer: int) -> MlaLayout:
    """The layout of one layer's attention. A file that holds both forms is read as "kv_b"."""
    return "kv_b" if f"blk.{layer}.attn_kv_b.weight" in file.tensors else "split"


_TABLE = "token_embd.weight"
_HEAD = "output.weight"


def with_head(tensors: Mapping[str, TensorInfo]) -> Mapping[str, TensorInfo]:
    """The tensors of a model, each by name, and one of the head in any case.

    With tied embeddings that is their table again, without bytes of its own in the file: what it takes in
    memory depends on the form that the head has there.
    """
    if _HEAD in tensors or _TABLE not in tensors:
        return tensors
    return {**tensors, _HEAD: replace(tensors[_TABLE], name=_HEAD, nbytes=0)}


def global_shapes(spec: ModelSpec, *, tied: bool = False) -> Shapes:
    """Tensors outside of the layers; a model with `tied` embeddings has no output matrix of its own."""
    shapes: Shapes = {
        _TABLE: (spec.vocab_size, spec.hidden_size),
        "output_norm.weight": (spec.hidden_size,),
    }
    return shapes if tied else shapes | {_HEAD: (spec.vocab_size, spec.hidden_size)}


def layer_shapes(spec: ModelSpec, layer: int, layout: MlaLayout, *, biased_gate: bool) -> Shapes:
    """Tensors of one layer, by full name; `biased_gate`: the router has a selection bias."""
    shapes = attention_shapes(spec, layout)
    if layer < spec.n_dense_layers:
        shapes |= feed_forward_shapes(spec.hidden_size, spec.dense_intermediate_size)
    else:
        shapes |= moe_shapes(spec, biased_gate=biased_gate)
    return {f"blk.{layer}.{name}": shape for name, shape in shapes.items()}


def attention_shapes(spec: ModelSpec, layout: MlaLayout) -> Shapes:
    """Multi-head latent attention and the two norms of a layer."""
    hidden, heads, latent = spec.hidden_size, spec.n_heads, spec.kv_lora_rank
    nope, rope, value = spec.qk_nope_head_dim, spec.qk_rope_head_dim, spec.v_head_dim
    shapes: Shapes = {"attn_norm.weight": (hidden,), "ffn_norm.weight": (hidden,)}
    if spec.q_lora_rank is None:
        shapes["attn_q.weight"] = (heads * (nope + rope), hidden)
    else:
        shapes["attn_q_a.weight"] = (spec.q_lora_rank, hidden)
        shapes["attn_q_a_norm.weight"] = (spec.q_lora_rank,)
        shapes["attn_q_b.weight"] = (heads * (nope + rope), spec.q_lora_rank)
    shapes["attn_kv_a_mqa.weight"] = (latent + rope, hidden)
    shapes["attn_kv_a_norm.weight"] = (latent,)
    if layout == "kv_b":
        shapes["attn_kv_b.weight"] = (heads * (nope + value), latent)
    else:
        shapes["attn_k_b.weight"] = (heads, latent, nope)
        shapes["attn_v_b.weight"] = (heads, value, latent)
    shapes["attn_output.weight"] = (hidden, heads * value)
    return shapes


def feed_forward_shapes(hidden: int, intermediate: int, suffix: str = "") -> Shapes:
    """A gated feed-forward block."""
    return {
        f"ffn_gate{suffix}.weight": (intermediate, hidden),
        f"ffn_up{suffix}.weight": (intermediate, hidden),
        f"ffn_down{suffix}.weight": (hidden, intermediate),
    }


def moe_shapes(spec: ModelSpec, *, biased_gate: bool) -> Shapes:
    """Router, routed experts and shared experts of a layer."""
    hidden, moe = spec.hidden_size, spec.moe
    shapes: Shapes = {"ffn_gate_inp.weight": (moe.n_experts, hidden)}
    if biased_gate:
        shapes["exp_probs_b.bias"] = (moe.n_experts,)
    routed = feed_forward_shapes(hidden, moe.intermediate_size, "_exps")
    shapes |= {name: (moe.n_experts, *shape) for name, shape in routed.items()}
    if moe.n_shared:
        shapes |= feed_forward_shapes(hidden, moe.n_shared * moe.intermediate_size, "_shexp")
    return shapes


def check_tensors(file: GGUFFile, spec: ModelSpec) -> None:
    """Check that every tensor which the model needs is there, with its shape; others are tolerated.

    Raises:
        ModelFileError: one line that names the tensor, what is wrong with it and what was expected.
    """
    tensors = file.tensors
    _check(file, global_shapes(spec, tied=_HEAD not in tensors))
    for layer in range(spec.n_layers):
        biased = f"blk.{layer}.exp_probs_b.bias" in tensors
        _check(file, layer_shapes(spec, layer, mla_layout(file, layer), biased_gate=biased))


def _check(file: GGUFFile, shapes: Shapes) -> None:
    for name, shape in shapes.items():
        info = file.tensors.get(name)
        if info is None:
            raise ModelFileError(f"{file.path}: tensor {name!r} is missing (shape {list(shape)} expected)")
        _check_one(file, info, shape)


def _check_one(file: GGUFFile, info: TensorInfo, shape: tuple[int, ...]) -> None:
    if info.shape != shape:
        expected = f"not {list(shape)} as the metadata say"
        raise ModelFileError(f"{file.path}: tensor {info.name!r} has shape {list(info.shape)}, {expected}")
    if info.type.is_integer:
        raise ModelFileError(f"{file.path}: tensor {info.name!r} has type {info.type.name}, not weights")
