"""A decode step's inputs, in tensors that stay where they are: what a recorded step reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from trimaran_kernels.gpu.sampling_inputs import DrawInputs

from trimaran_attn.drawing import DRAW_FIELDS, NOT_WANTED, fill_draws
from trimaran_attn.draws import Draw
from trimaran_attn.kv_cache import PAGE_SIZE
from trimaran_attn.model.batch import Batch, DecodeRows
from trimaran_attn.pages import pages_for
from trimaran_attn.scheduler import Chunk

_ALIGNMENT = 64


@dataclass(frozen=True)
class InputShape:
    """Sizes of a recorded step.

    Attributes:
        rows: tokens, padding included.
        context_length: tokens of the longest request there may be.
        hidden_size: of x.
        dtype: of x.
        null_page: a page that no request has: rows of padding write and read there.
    """

    rows: int
    context_length: int
    hidden_size: int
    dtype: torch.dtype
    null_page: int


@dataclass(frozen=True)
class StageInputs:
    """What the layers of one device read.

    Attributes:
        batch: the step's; its tensors are views of one buffer. `decode.x` is what comes into the first layer.
        draws: how the step's tokens are drawn.
    """

    batch: Batch
    draws: DrawInputs

    @property
    def x(self) -> Tensor:
        """[rows, hidden]."""
        return self._rows.x

    @property
    def live(self) -> Tensor:
        """int32 [1], how many rows are real."""
        return self._rows.live

    @property
    def _rows(self) -> DecodeRows:
        assert self.batch.decode is not None
        return self.batch.decode


class DecodeInputs:
    """All inputs lie in one buffer, so that one copy brings them to a device.

    Args:
        shape: of the step.
        devices: that compute it, in the order of their layers.

    Attributes:
        stages: what is read on each of them.
        tokens: int32 [rows] on the last one, where they are written.
        n_rows: padding included.
    """

    def __init__(self, shape: InputShape, devices: Sequence[torch.device]) -> None:
        self._shape = shape
        self.n_rows = n = shape.rows
        self._layout: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
            "x": (shape.dtype, (n, shape.hidden_size)),
            "token_ids": (torch.int64, (n,)),
            "positions": (torch.int64, (n,)),
            "slots": (torch.int64, (n,)),
            "lengths": (torch.int32, (n,)),
            "live": (torch.int32, (1,)),
            "tables": (torch.int32, (n, pages_for(shape.context_length, PAGE_SIZE))),
            **{name: (dtype, (n,)) for name, dtype in DRAW_FIELDS.items()},
        }
        size = sum(_nbytes(*field) for field in self._layout.values())
        self._host = torch.zeros(size, dtype=torch.uint8, pin_memory=devices[0].type == "cuda")
        self._there = [torch.zeros(size, dtype=torch.uint8, device=device) for device in devices]
        host = _views(self._host, self._layout)
        self._x = host.pop("x")
        self._fields: dict[str, NDArray[Any]] = {name: view.numpy() for name, view in host.items()}
        # Whose pages each row of `tables` holds, and how many of them.
        self._tables: list[list[int]] = [[] for _ in range(n)]
        self.stages = tuple(
            self._stage(buffer, device) for buffer, device in zip(self._there, devices, strict=True)
        )
        self.tokens = torch.zeros(n, dtype=torch.int32, device=devices[-1])

    def _stage(self, buffer: Tensor, device: torch.device) -> StageInputs:
        there, n = _views(buffer, self._layout), self.n_rows
        rows = DecodeRows(
            x=there["x"],
            tables=there["tables"],
            lengths=there["lengths"],
            requests=torch.arange(n, dtype=torch.int32, device=device),
            longest=there["tables"].shape[1] * PAGE_SIZE,
            live=there["live"],
        )
        positions, slots = there["positions"], there["slots"]
        every_row = torch.arange(n, device=device)
        batch = Batch(there["token_ids"], positions, slots, (), every_row, decode=rows)
        return StageInputs(batch, DrawInputs(**{name: there[name] for name in DRAW_FIELDS}))

    def fill(self, chunks: Sequence[Chunk], x: Tensor, draws: Mapping[str, Draw]) -> None:
        """Bring a step's inputs to the devices, in their streams' order; the step before must be over.

        Args:
            chunks: one token each, at most as many as rows.
            x: [n, hidden] on the CPU, their embeddings.
            draws: by request id, how tokens are drawn; those of others are not wanted.
        """
        n, fields = len(chunks), self._fields
        fields["live"][0] = n
        for name, padding in (("positions", 0), ("slots", self._shape.null_page * PAGE_SIZE), ("lengths", 1)):
            fields[name][n:] = padding
        for row, chunk in enumerate(chunks):
            position, pages = chunk.start, chunk.request.pages
            fields["positions"][row] = position
            fields["slots"][row] = pages[position // PAGE_SIZE] * PAGE_SIZE + position % PAGE_SIZE
            fields["lengths"][row] = position + 1
            self._fill_table(row, pages)
        for row in range(n, self._shape.rows):
            fields["tables"][row, 0] = self._shape.null_page
            self._tables[row] = []
        fill_draws(fields, [draws.get(chunk.request.request_id, NOT_WANTED) for chunk in chunks])
        self._x[:n] = x
        for buffer in self._there:
            buffer.copy_(self._host, non_blocking=True)

    def _fill_table(self, row: int, pages: list[int]) -> None:
        """Only what was added, if the row begins as it did: a request may come to share another's page."""
        known = self._tables[row]
        first = len(known) if pages[: len(known)] == known else 0
        self._fields["tables"][row, first : len(pages)] = pages[first:]
        self._tables[row] = list(pages)


def _nbytes(dtype: torch.dtype, dims: tuple[int, ...]) -> int:
    """Of a tensor and what follows it up to the next border."""
    return -(-dtype.itemsize * prod(dims) // _ALIGNMENT) * _ALIGNMENT


def _views(flat: Tensor, layout: dict[str, tuple[torch.dtype, tuple[int, ...]]]) -> dict[str, Tensor]:
    parts = torch.split(flat, [_nbytes(*field) for field in layout.values()])
    return {
        name: part[: dtype.itemsize * prod(dims)].view(dtype).view(dims)
        for part, (name, (dtype, dims)) in zip(parts, layout.items(), strict=True)
    }
