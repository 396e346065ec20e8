"""The model file as the modules see it: tensors by module path, checked against the model's dimensions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import trimaran_kernels
from numpy.typing import NDArray
from torch import Tensor
from trimaran.errors import ModelFileError
from trimaran.gguf import GGMLType, GGUFFile
from trimaran.module_names import tensor_name

Shape = tuple[int, ...]


@dataclass(frozen=True)
class QuantTensor:
    """A tensor in the file's own encoding.

    Attributes:
        type: the encoding.
        shape: elements, outermost first.
        raw: the mapped bytes [nbytes], read-only; rows of the last dimension are contiguous.
    """

    type: GGMLType
    shape: Shape
    raw: NDArray[np.uint8]

    def dequantize(self) -> Tensor:
        """All of it, float32 on the CPU."""
        return _expand(self.type, self.raw, self.shape)

    def rows(self, index: NDArray[np.int64]) -> Tensor:
        """Some rows of a matrix, float32 [len(index), shape[1]] on the CPU."""
        n_rows, width = self.shape
        raw = self.raw.reshape(n_rows, self.type.row_bytes(width))[index]
        return _expand(self.type, raw.reshape(-1), (len(index), width))


def _expand(type_: GGMLType, raw: NDArray[np.uint8], shape: Shape) -> Tensor:
    return torch.from_numpy(trimaran_kernels.dequantize(int(type_), raw, math.prod(shape))).view(shape)


class Weights:
    """Finds the tensors of modules in a model file."""

    def __init__(self, file: GGUFFile) -> None:
        self._file = file

    def has(self, path: str) -> bool:
        """Whether the file holds weights for the module."""
        return tensor_name(path) in self._file.tensors

    def quantised(self, path: str, shape: Shape) -> QuantTensor:
        """The module's tensor, as it is in the file.

        Raises:
            ModelFileError: it is missing or has another shape.
        """
        info = self._file.tensor(tensor_name(path))
        if info.shape != shape:
            raise ModelFileError(
                f"{self._file.path}: tensor {info.name!r} has shape {list(info.shape)}, "
                f"the model's dimensions want {list(shape)}"
            )
        return QuantTensor(info.type, info.shape, self._file.raw(info.name))

    def dense(self, path: str, shape: Shape) -> Tensor:
        """The module's tensor as float32 on the CPU; raises as `quantised` does."""
        return self.quantised(path, shape).dequantize()

    def forget(self, path: str) -> None:
        """Give the memory of the module's tensor in the file back; it may be read again."""
        self._file.forget(tensor_name(path))
