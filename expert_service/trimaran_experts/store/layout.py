"""Where each matrix of a shard lies in its store: a function of the model and the kernels' packing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from trimaran_experts.loader import ExpertLayer, ExpertMatrix

PackedBytes = Callable[[int, int, int], int | None]
"""(GGUF type, rows, columns) → bytes of one packed expert; None: it stays in the file's encoding."""

LAYOUT_VERSION = 1
ALIGNMENT = 4096


class Place(msgspec.Struct, frozen=True, array_like=True):
    """One matrix of one layer, all experts one after another.

    Attributes:
        kind: gate, up or down. type: GGUF type id.
        rows, columns: of one expert's part. packed: whether the kernels' packing or the file's encoding.
        offset: from the first byte of the data. expert_bytes: of one expert.
    """

    layer: int
    kind: str
    type: int
    n_experts: int
    rows: int
    columns: int
    packed: bool
    offset: int
    expert_bytes: int

    @property
    def nbytes(self) -> int:
        """Bytes of all experts."""
        return self.n_experts * self.expert_bytes


@dataclass(frozen=True)
class Layout:
    """Every matrix's place, in the order of the model; `nbytes` is what they take together."""

    places: tuple[Place, ...]
    nbytes: int

    @property
    def packed_bytes(self) -> int:
        """Bytes of what is packed."""
        return sum(place.nbytes for place in self.places if place.packed)


def plan_layout(
    layers: Sequence[ExpertLayer], packed_bytes: PackedBytes, *, whole_layers: bool = False
) -> Layout:
    """One matrix after another, each on its own page.

    Args:
        whole_layers: a layer is packed if all its matrices can be, else none of them is.
    """
    places, offset = [], 0
    for layer in layers:
        packed = [packed_bytes(int(matrix.type), *matrix.shape) for matrix in layer.matrices]
        if whole_layers and None in packed:
            packed = [None] * len(packed)
        for kind, matrix, size in zip(("gate", "up", "down"), layer.matrices, packed, strict=True):
            place = _place(layer.layer, kind, matrix, offset, size)
            places.append(place)
            offset += -(-place.nbytes // ALIGNMENT) * ALIGNMENT
    return Layout(tuple(places), offset)


def _place(layer: int, kind: str, matrix: ExpertMatrix, offset: int, packed: int | None) -> Place:
    rows, columns = matrix.shape
    size = matrix.expert_bytes if packed is None else packed
    return Place(
        layer, kind, int(matrix.type), matrix.n_experts, rows, columns, packed is not None, offset, size
    )
