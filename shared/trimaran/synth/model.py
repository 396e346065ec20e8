"""Writing a small random model, a hollow one of full size, or one of full size and of random bits."""

from __future__ import annotations

import zlib
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trimaran.gguf.encode import Writable
from trimaran.gguf.mix import TypeChoice, mix_named
from trimaran.gguf.quantize import QUANTIZABLE, quantize
from trimaran.gguf.types import GGMLType
from trimaran.gguf.writer import TensorData, write_gguf, write_split_gguf
from trimaran.model_tensors import MlaLayout
from trimaran.spec import ModelSpec
from trimaran.synth.blocks import random_blocks
from trimaran.synth.drawn import draw_blocks
from trimaran.synth.metadata import model_metadata
from trimaran.synth.real import REAL_SPECS, RealName
from trimaran.synth.shapes import ShapeName, random_spec
from trimaran.synth.tokenizer import synth_tokenizer, wide_tokenizer
from trimaran.synth.weights import random_weights, tensor_shapes, weight_std


def random_tensors(spec: ModelSpec, layout: MlaLayout, choose: TypeChoice, seed: int) -> list[TensorData]:
    """The tensors of a random model, of the types that `choose` gives; each is made when it is written."""
    tensors = []
    for name, shape in tensor_shapes(spec, layout).items():
        kind = choose(name, shape)
        tensors.append(TensorData(name, kind, shape, partial(_encode, spec, name, shape, kind, seed)))
    return tensors


def write_random_model(
    path: str | Path,
    shape: ShapeName = "v3",
    *,
    layout: MlaLayout = "split",
    mix: str | TypeChoice = "F32",
    seed: int = 0,
    yarn: bool | None = None,
    tokenizer: bool = True,
    parts: int = 1,
    spec: ModelSpec | None = None,
) -> Path:
    """Write a random model.

    Args:
        path: the file; with `parts` above 1, `stem-00001-of-0000N.gguf` and so on are written beside it.
        shape: which family the model is a small member of.
        layout: how the latent's up-projection is stored; the weights are the same ones.
        mix: a name of `trimaran.gguf.mix.MIXES`, or a function (tensor name, shape) → type.
        seed: of the weights.
        yarn: overrides whether the context is extended.
        tokenizer: whether to include a tokeniser and a chat template.
        parts: number of files.
        spec: dimensions to use instead of the shape's own.

    Returns:
        The (first) file, which is the one to open.
    """
    path = Path(path)
    spec = spec or random_spec(shape, yarn=yarn)
    choose = partial(mix_named(mix).choose, n_layers=spec.n_layers) if isinstance(mix, str) else mix
    metadata = model_metadata(spec, layout) | (synth_tokenizer().metadata() if tokenizer else {})
    return _write(path, metadata, random_tensors(spec, layout, choose, seed), parts)


def write_hollow_model(path: str | Path, name: RealName, *, mix: str = "Q4_K_M", parts: int = 1) -> Path:
    """Write a model of the real dimensions whose tensors are holes: all zeros, which take no space on disk.

    It serves to plan for a model that is not there. Arguments and result are those of `write_random_model`.
    """
    path, spec = Path(path), REAL_SPECS[name]
    choose = mix_named(mix).choose
    tensors = [
        TensorData(tensor, choose(tensor, shape, spec.n_layers), shape, None)
        for tensor, shape in tensor_shapes(spec, "split").items()
    ]
    return _write(path, model_metadata(spec, "split"), tensors, parts)


def write_full_size_model(
    path: str | Path, name: RealName, *, mix: str = "Q4_K_M", n_layers: int | None = None, seed: int = 0
) -> Path:
    """Write a model of the real dimensions whose quantised blocks are drawn at random, tensor after tensor.

    It computes what the real one would, on as many bytes, and with a tokeniser of as many tokens; no more
    memory is taken than a few times the largest tensor.

    Args:
        n_layers: fewer layers than the real model has, for a try; None: all.
        path, name, mix, seed: as for `write_random_model`.
    """
    path, spec, choose = Path(path), REAL_SPECS[name], mix_named(mix).choose
    if n_layers is not None:
        spec = replace(spec, n_layers=n_layers)
    tensors = []
    for tensor, shape in tensor_shapes(spec, "split").items():
        kind = choose(tensor, shape, spec.n_layers)
        tensors.append(TensorData(tensor, kind, shape, partial(_draw, spec, tensor, shape, kind, seed)))
    metadata = model_metadata(spec, "split") | wide_tokenizer(spec.vocab_size).metadata()
    return _write(path, metadata, tensors, 1)


def _draw(spec: ModelSpec, name: str, shape: tuple[int, ...], kind: GGMLType, seed: int) -> NDArray[np.uint8]:
    if not kind.is_quantised:
        return quantize(kind, random_weights(spec, name, shape, seed))
    return draw_blocks(kind, shape, weight_std(spec, name, shape), (seed, zlib.crc32(name.encode())))


def _write(path: Path, metadata: dict[str, Writable], tensors: list[TensorData], parts: int) -> Path:
    if parts > 1:
        return write_split_gguf(path.parent, path.stem, metadata, tensors, parts)[0]
    write_gguf(path, metadata, tensors)
    return path


def _encode(
    spec: ModelSpec, name: str, shape: tuple[int, ...], kind: GGMLType, seed: int
) -> NDArray[np.uint8]:
    weights = random_weights(spec, name, shape, seed)
    if kind in QUANTIZABLE:
        return quantize(kind, weights)
    return random_blocks(kind, shape, std=float(weights.std()), seed=(seed, zlib.crc32(name.encode())))
