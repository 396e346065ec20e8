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


class DecodeInputs:
    """All inputs lie in one buffer, so that one copy brings them to the device.

    Args:
        shape: of the step.
        device: that computes it.

    Attributes:
        batch: the step's batch; its tensors are views of the buffer.
        live: int32 [1], how many rows are real.
        draws: how the step's tokens are drawn; views of the buffer too.
        tokens: int32 [rows], where they are written.
    """

    def __init__(self, shape: InputShape, device: torch.device) -> None:
        self._shape = shape
        n = shape.rows
        n_pages = pages_for(shape.context_length, PAGE_SIZE)
        layout: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
            "x": (shape.dtype, (n, shape.hidden_size)),
            "token_ids": (torch.int64, (n,)),
            "positions": (torch.int64, (n,)),
            "slots": (torch.int64, (n,)),
            "lengths": (torch.int32, (n,)),
            "live": (torch.int32, (1,)),
            "tables": (torch.int32, (n, n_pages)),
            **{name: (dtype, (n,)) for name, dtype in DRAW_FIELDS.items()},
        }
        sizes = [_padded(dtype.itemsize * prod(dims)) for dtype, dims in layout.values()]
        on_gpu = device.type == "cuda"
        self._host = torch.zeros(sum(sizes), dtype=torch.uint8, pin_memory=on_gpu)
        self._device = torch.zeros(sum(sizes), dtype=torch.uint8, device=device)
        host, there = (_views(flat, layout, sizes) for flat in (self._host, self._device))
        self._x = host.pop("x")
        self._fields: dict[str, NDArray[Any]] = {name: view.numpy() for name, view in host.items()}
        # Whose pages each row of `tables` holds, and how many of them.
        self._tables: list[list[int]] = [[] for _ in range(n)]
        self.live = there["live"]
        self.draws = DrawInputs(**{name: there[name] for name in DRAW_FIELDS})
        self.tokens = torch.zeros(n, dtype=torch.int32, device=device)
        rows = DecodeRows(
            x=there["x"],
            tables=there["tables"],
            lengths=there["lengths"],
            requests=torch.arange(n, dtype=torch.int32, device=device),
            longest=n_pages * PAGE_SIZE,
        )
        self.batch = Batch(
            there["token_ids"],
            there["positions"],
            there["slots"],
            (),
            torch.arange(n, device=device),
            decode=rows,
        )

    def fill(self, chunks: Sequence[Chunk], x: Tensor, draws: Mapping[str, Draw]) -> None:
        """Bring a step's inputs to the device, in the stream's order; the step before must be over.

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
        self._device.copy_(self._host, non_blocking=True)

    def _fill_table(self, row: int, pages: list[int]) -> None:
        """Only what was added, if the row begins as it did: a request may come to share another's page."""
        known = self._tables[row]
        first = len(known) if pages[: len(known)] == known else 0
        self._fields["tables"][row, first : len(pages)] = pages[first:]
        self._tables[row] = list(pages)


def _padded(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT


def _views(
    flat: Tensor, layout: dict[str, tuple[torch.dtype, tuple[int, ...]]], sizes: list[int]
) -> dict[str, Tensor]:
    parts = torch.split(flat, sizes)
    return {
        name: part[: dtype.itemsize * prod(dims)].view(dtype).view(dims)
        for part, (name, (dtype, dims)) in zip(parts, layout.items(), strict=True)
    }
