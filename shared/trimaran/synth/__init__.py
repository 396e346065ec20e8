"""Random and hollow DeepSeek models, small and of full size, for tests, benchmarks and trying things out.

shapes      the dimensions of a small V2, V2-Lite, V3, Kimi-K2, Moonlight
real        the dimensions of the real models
metadata    the keys that describe a spec in a file
tokenizer   a small byte-level BPE tokeniser and a chat template
weights     random weights that keep activations sane
blocks      random weights of any type, also those that cannot be written
drawn       random blocks of the usual types, drawn fast enough for a model of full size
model       puts them together and writes the file
"""

from __future__ import annotations

from trimaran.synth.metadata import model_metadata
from trimaran.synth.model import (
    random_tensors,
    write_full_size_model,
    write_hollow_model,
    write_random_model,
)
from trimaran.synth.real import REAL_SPECS, RealName
from trimaran.synth.shapes import SHAPES, ShapeName, random_spec
from trimaran.synth.tokenizer import SynthTokenizer, synth_tokenizer, wide_tokenizer

__all__ = [
    "REAL_SPECS",
    "SHAPES",
    "RealName",
    "ShapeName",
    "SynthTokenizer",
    "model_metadata",
    "random_spec",
    "random_tensors",
    "synth_tokenizer",
    "wide_tokenizer",
    "write_full_size_model",
    "write_hollow_model",
    "write_random_model",
]
