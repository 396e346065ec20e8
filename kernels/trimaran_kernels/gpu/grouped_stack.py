"""The experts of one layer that a GPU holds: slots of equal size, whose weights may be exchanged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from trimaran.gguf import GGMLType

from trimaran_kernels.gpu.layouts import Planes
from trimaran_kernels.gpu.matrix import QuantMatrix
from trimaran_kernels.gpu.pack import pack


@dataclass(frozen=True)
class ExpertStack:
    """Experts one below the other: slot s holds rows [s·N, (s + 1)·N) of each matrix.

    Attributes:
        n_slots: experts that fit, at least 1.
        gate, up: [n_slots · intermediate, hidden]. Types may differ between all three.
        down: [n_slots · hidden, intermediate].
    """

    n_slots: int
    gate: QuantMatrix
    up: QuantMatrix
    down: QuantMatrix

    @classmethod
    def empty(
        cls,
        n_slots: int,
        types: tuple[GGMLType, GGMLType, GGMLType],
        hidden: int,
        intermediate: int,
        device: torch.device,
    ) -> ExpertStack:
        """Room for experts, with weights of 0.

        Args:
            n_slots: how many.
            types: of gate, up and down, each one of `LAYOUTS`.
            hidden, intermediate: multiples of the types' blocks.
            device: where it is.
        """
        gate, up, down = types
        return cls(
            n_slots,
            _zeros(gate, n_slots * intermediate, hidden, device),
            _zeros(up, n_slots * intermediate, hidden, device),
            _zeros(down, n_slots * hidden, intermediate, device),
        )

    @property
    def hidden(self) -> int:
        """Columns of gate and up."""
        return self.gate.shape[1]

    @property
    def intermediate(self) -> int:
        """Columns of down."""
        return self.down.shape[1]

    @property
    def matrices(self) -> tuple[QuantMatrix, QuantMatrix, QuantMatrix]:
        """gate, up, down."""
        return self.gate, self.up, self.down

    @property
    def nbytes(self) -> int:
        """Bytes of device memory."""
        return sum(matrix.nbytes for matrix in self.matrices)

    def put(self, slot: int, expert: Sequence[QuantMatrix]) -> None:
        """Overwrite a slot with an expert's gate, up and down, of the stack's types, on any device."""
        for whole, part in zip(self.matrices, expert, strict=True):
            assert (part.type, part.shape[1]) == (whole.type, whole.shape[1])
            target = slice_rows(whole, slot * part.shape[0], part.shape[0])
            for plane, values in zip(target.planes[:-1], part.planes[:-1], strict=True):
                plane.copy_(values)

    def expert(self, slot: int) -> tuple[QuantMatrix, QuantMatrix, QuantMatrix]:
        """Views of a slot's gate, up and down."""
        gate, up, down = (
            slice_rows(matrix, slot * (matrix.shape[0] // self.n_slots), matrix.shape[0] // self.n_slots)
            for matrix in self.matrices
        )
        return gate, up, down


def slice_rows(matrix: QuantMatrix, first: int, n: int) -> QuantMatrix:
    """A view of rows [first, first + n)."""
    planes = [plane[first : first + n] for plane in matrix.planes[:-1]]
    return QuantMatrix(matrix.type, (n, matrix.shape[1]), Planes._make((*planes, matrix.planes.levels)))


def _zeros(type_: GGMLType, rows: int, columns: int, device: torch.device) -> QuantMatrix:
    """Planes of the shapes that packing gives, with each absent one standing for the same tensor as there."""
    one = pack(type_, torch.zeros(type_.row_bytes(columns), dtype=torch.uint8, device=device), (1, columns))
    made: dict[int, Tensor] = {}
    for plane in one[:-1]:
        if id(plane) not in made:
            made[id(plane)] = plane.new_zeros(rows, plane.shape[1])
    planes = Planes._make((*(made[id(plane)] for plane in one[:-1]), one.levels))
    return QuantMatrix(type_, (rows, columns), planes)
