"""A few layers of a real model, in a file whose routed experts are a hole: a GPU never reads them."""

from __future__ import annotations

import zlib
from functools import partial
from math import prod
from pathlib import Path

import numpy as np
from trimaran.gguf import GGMLType
from trimaran.gguf.mix import mix_named
from trimaran.gguf.quantize import quantize
from trimaran.gguf.writer import TensorData, write_gguf
from trimaran.spec import ModelSpec
from trimaran.synth import model_metadata
from trimaran.synth.drawn import draw_blocks
from trimaran.synth.weights import random_weights, tensor_shapes, weight_std

DRAWN_WEIGHTS = 1 << 23
"""Of a tensor at most; then its rows begin again: drawing two gigabytes would take half a minute."""


def write_slice(path: Path, spec: ModelSpec) -> Path:
    """Random weights of all but the routed experts, in the types of Q4_K_M."""
    choose = mix_named("Q4_K_M").choose
    tensors = []
    for name, shape in tensor_shapes(spec, "split").items():
        kind = choose(name, shape, spec.n_layers)
        draw = None if "_exps" in name else partial(_draw, spec, name, shape, kind)
        tensors.append(TensorData(name, kind, shape, draw))
    write_gguf(path, model_metadata(spec, "split"), tensors)
    return path


def _draw(spec: ModelSpec, name: str, shape: tuple[int, ...], kind: GGMLType) -> np.ndarray:
    if not kind.is_quantised:
        return quantize(kind, random_weights(spec, name, shape, 0))
    rows, columns = prod(shape[:-1]), shape[-1]
    some = draw_blocks(
        kind,
        (min(rows, max(1, DRAWN_WEIGHTS // columns)), columns),
        weight_std(spec, name, shape),
        (0, zlib.crc32(name.encode())),
    )
    return np.resize(some, rows * kind.row_bytes(columns))
