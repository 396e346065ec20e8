"""GGUF model files: reading, writing, dequantisation and quantisation.

types      numbers of the format: tensor types, block sizes, metadata types
cursor     bounds-checked reading of a mapped file
metadata   key-value pairs, decoded when asked for
directory  tensor names, types, shapes, places
part       one file; `file` puts the parts of a model together
writer     writes a model, in one file or in parts
iq_grids   code books of the IQ types
dequant    any type → float32
quantize   float32 → the types that are written here
mix        which type each tensor gets in a named mix such as Q4_K_M
"""

from __future__ import annotations

from trimaran.gguf.directory import TensorInfo
from trimaran.gguf.file import GGUFFile
from trimaran.gguf.metadata import Metadata
from trimaran.gguf.types import GGMLType
from trimaran.gguf.writer import TensorData, write_gguf, write_split_gguf

__all__ = ["GGMLType", "GGUFFile", "Metadata", "TensorData", "TensorInfo", "write_gguf", "write_split_gguf"]
