"""In which form a GPU holds a tensor of the model file, and how many bytes that takes.

Types with a GPU kernel stay as they are. Q5_0 becomes Q8_0 without loss, and any other quantised type the
nearest Q8_0 weights; plain numbers become bfloat16. The plan counts by these rules, and the attention service
loads by them.
"""

from __future__ import annotations

from math import prod

from trimaran.gguf import GGMLType, TensorInfo

# Bytes of 256 weights: as in the file, but 6-bit scales take a byte each.
_NATIVE = {
    GGMLType.Q4_0: 144,
    GGMLType.IQ4_NL: 144,
    GGMLType.Q8_0: 272,
    GGMLType.Q4_K: 148,
    GGMLType.Q5_K: 180,
    GGMLType.Q6_K: 210,
    GGMLType.IQ4_XS: 138,
}


def gpu_type(type_: GGMLType) -> GGMLType:
    """The type that a GPU computes with: a native one, or BF16."""
    if type_ in _NATIVE:
        return type_
    return GGMLType.Q8_0 if type_.is_quantised else GGMLType.BF16


def is_re_encoded(type_: GGMLType) -> bool:
    """Whether quantised weights change, if by little: users are told."""
    return type_.is_quantised and type_ not in _NATIVE and type_ is not GGMLType.Q5_0


def gpu_bytes(info: TensorInfo) -> int:
    """Bytes that a matrix takes on a GPU."""
    n_weights, per_256 = prod(info.shape), _NATIVE.get(gpu_type(info.type))
    return 2 * n_weights if per_256 is None else n_weights * per_256 // 256
