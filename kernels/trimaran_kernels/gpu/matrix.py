"""A quantised matrix in GPU memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from trimaran.gguf import GGMLType

from trimaran_kernels.gpu.layouts import LAYOUTS, Layout, Planes
from trimaran_kernels.gpu.pack import pack


@dataclass(frozen=True)
class QuantMatrix:
    """W [N, K] as planes.

    Attributes:
        type: the GGUF type that the planes hold.
        shape: [N, K].
    """

    type: GGMLType
    shape: tuple[int, int]
    planes: Planes

    @classmethod
    def from_blocks(cls, type_: GGMLType, raw: Tensor, shape: tuple[int, int]) -> QuantMatrix:
        """From the file's bytes, uint8, already on the device; the type must be one of `LAYOUTS`."""
        return cls(type_, shape, pack(type_, raw, shape))

    def to(self, device: torch.device) -> QuantMatrix:
        """The same matrix elsewhere."""
        moved = {id(plane): plane.to(device) for plane in self.planes}
        return QuantMatrix(self.type, self.shape, Planes(*(moved[id(plane)] for plane in self.planes)))

    @property
    def layout(self) -> Layout:
        """How kernels read it."""
        return LAYOUTS[self.type]

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.planes.codes.device

    @property
    def nbytes(self) -> int:
        """Bytes of device memory that it takes, without the small table of levels."""
        distinct = {plane.data_ptr(): plane.nbytes for plane in self.planes[:-1]}
        return sum(distinct.values())
