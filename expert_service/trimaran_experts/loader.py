"""The routed experts in the model file: which bytes of it are this shard's, checked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from trimaran.errors import ConfigError, ModelFileError
from trimaran.gguf import GGMLType, GGUFFile
from trimaran.spec import ModelSpec

from trimaran_experts.placement import Placement


@dataclass(frozen=True)
class ExpertMatrix:
    """One matrix of this shard's experts, as it lies in the file.

    Attributes:
        name: of the tensor.
        type: how the values are stored.
        n_experts: how many of the tensor's experts are this shard's, one after another.
        whole: shape of one expert in the file, [out, in].
        rows, columns: half-open ranges of it that are this shard's; columns begin and end with a block.
        raw: uint8 view of the mapped file, all of these experts, whole. path, offset: where these bytes are.
    """

    name: str
    type: GGMLType
    n_experts: int
    whole: tuple[int, int]
    rows: tuple[int, int]
    columns: tuple[int, int]
    raw: NDArray[np.uint8]
    path: str
    offset: int

    @property
    def shape(self) -> tuple[int, int]:
        """[out, in] of one expert's part in this shard."""
        return self.rows[1] - self.rows[0], self.columns[1] - self.columns[0]

    @property
    def is_whole(self) -> bool:
        """Whether this shard has all rows and columns of its experts."""
        return self.shape == self.whole

    @property
    def file_bytes(self) -> int:
        """Bytes of one whole expert in the file."""
        return self.whole[0] * self.type.row_bytes(self.whole[1])

    @property
    def expert_bytes(self) -> int:
        """Bytes of one expert's part in this shard, in the file's encoding."""
        return self.shape[0] * self.type.row_bytes(self.shape[1])

    def part(self, expert: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """This shard's rows and columns of one whole expert: contiguous, copied only if need be."""
        lines = expert.reshape(self.whole[0], -1)[self.rows[0] : self.rows[1]]
        first, end = (self.type.row_bytes(column) for column in self.columns)
        return np.ascontiguousarray(lines[:, first:end]).reshape(-1)

    def expert(self, index: int) -> NDArray[np.uint8]:
        """The bytes of the `index`-th expert of this shard, its part only."""
        size = self.file_bytes
        return self.part(self.raw[index * size : (index + 1) * size])


@dataclass(frozen=True)
class ExpertLayer:
    """A MoE layer's routed experts: gate and up [intermediate, hidden], down [hidden, intermediate]."""

    layer: int
    gate: ExpertMatrix
    up: ExpertMatrix
    down: ExpertMatrix

    @property
    def matrices(self) -> tuple[ExpertMatrix, ExpertMatrix, ExpertMatrix]:
        """All three."""
        return self.gate, self.up, self.down


def find_experts(file: GGUFFile, spec: ModelSpec, placement: Placement) -> list[ExpertLayer]:
    """The shard's part of every MoE layer (tensors blk.N.ffn_{gate,up,down}_exps.weight).

    Raises:
        ModelFileError: a tensor is missing or of the wrong shape.
        ConfigError: the shard's columns do not begin and end with a quantisation block.
    """
    wide = (spec.moe.intermediate_size, spec.hidden_size)
    narrow = (spec.hidden_size, spec.moe.intermediate_size)
    everything = (0, spec.hidden_size)

    def gate_or_up(layer: int, kind: str) -> ExpertMatrix:
        parts = (placement.columns, everything)
        return _find(file, placement, _name(layer, kind), (spec.moe.n_experts, *wide), parts)

    def down(layer: int) -> ExpertMatrix:
        parts = (everything, placement.columns)
        return _find(file, placement, _name(layer, "down"), (spec.moe.n_experts, *narrow), parts)

    return [
        ExpertLayer(layer, gate_or_up(layer, "gate"), gate_or_up(layer, "up"), down(layer))
        for layer in range(spec.n_dense_layers, spec.n_layers)
    ]


def _name(layer: int, kind: str) -> str:
    return f"blk.{layer}.ffn_{kind}_exps.weight"


def _find(
    file: GGUFFile,
    placement: Placement,
    name: str,
    shape: tuple[int, int, int],
    parts: tuple[tuple[int, int], tuple[int, int]],
) -> ExpertMatrix:
    """The matrix of this shape; `parts` are this shard's rows and columns."""
    info = file.tensor(name)
    if info.shape != shape:
        raise ModelFileError(f"{file.path}: tensor '{name}' has shape {list(info.shape)}, need {list(shape)}")
    _, columns = parts
    if any(column % info.type.block_size for column in columns):
        raise ConfigError(
            f"experts.columns is {columns[0]}-{columns[1] - 1}, but {name} is {info.type.name}, whose blocks"
            f" hold {info.type.block_size} columns",
            remedy=f"cut at multiples of {info.type.block_size}",
        )
    size = info.nbytes // shape[0]
    start, stop = (expert * size for expert in placement.experts)
    return ExpertMatrix(
        name=name,
        type=info.type,
        n_experts=placement.n_experts,
        whole=shape[1:],
        rows=parts[0],
        columns=columns,
        raw=file.raw(name)[start:stop],
        path=str(file.paths[info.part]),
        offset=info.offset + start,
    )
