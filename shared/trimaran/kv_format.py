"""How a token's latent and rotated key are stored in a layer's KV cache, and how many bytes that takes."""

from __future__ import annotations

from typing import Literal

from trimaran.spec import ModelSpec

KvFormat = Literal["f32", "bf16", "fp8", "int8"]
KvChoice = Literal["auto", "f32", "bf16", "fp8", "int8"]

SCALE_GROUP = 128
"""Values of a latent that share a scale, in fp8 and int8."""


def choose_format(choice: KvChoice, *, exact: bool) -> KvFormat:
    """What `attn.kv_dtype` means: auto is bf16, or f32 if nothing shall be rounded."""
    if choice == "auto":
        return "f32" if exact else "bf16"
    return choice


def entry_bytes(spec: ModelSpec, kind: KvFormat) -> int:
    """Bytes per token and layer.

    f32, bf16: latent and rotated key as such. fp8 (E4M3), int8: a byte for each value of the latent, padded
    to 4; a float32 scale for each `SCALE_GROUP` of them; the rotated key as bf16; the sum padded to 4.
    """
    latent, rope = spec.kv_lora_rank, spec.qk_rope_head_dim
    if kind in ("f32", "bf16"):
        return (latent + rope) * (4 if kind == "f32" else 2)
    return _round_up(scales_offset(latent) + 4 * -(-latent // SCALE_GROUP) + 2 * rope)


def scales_offset(latent: int) -> int:
    """Where an 8-bit entry's scales start: behind the codes."""
    return _round_up(latent)


def _round_up(n: int) -> int:
    return -(-n // 4) * 4
