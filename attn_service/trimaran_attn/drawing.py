"""Drawing tokens where the logits are.

How each row is drawn goes there; tokens, and the logits of rows that the host draws, come back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from trimaran.telemetry import Log
from trimaran_kernels.gpu.sampling_inputs import LARGEST_VOCAB, DrawInputs

from trimaran_attn.draws import Draw
from trimaran_attn.placement import entered

NOT_WANTED = Draw(-1.0)
"""Of rows that somebody else draws, and of padding."""

DRAW_FIELDS = {
    "temperatures": torch.float32,
    "top_ks": torch.int32,
    "top_ps": torch.float64,
    "min_ps": torch.float32,
    "shares": torch.float64,
}
"""The tensors of `DrawInputs` and their types."""

_KEEPS_ALL = 1 << 30
_HOTTEST = float(np.finfo(np.float32).max)
"""Far below it, all tokens are equally likely already."""
_log = Log(__name__)


class Drawer(Protocol):
    """Draws a token of each row: `trimaran_kernels.gpu.sampling.draw`."""

    def __call__(self, logits: Tensor, wanted: DrawInputs, out: Tensor) -> Tensor:
        """logits: float32 [R, vocab]; out: int32 [R]."""
        ...


@dataclass(frozen=True)
class Computed:
    """What a step left on its device.

    Attributes:
        logits: float32 [S, vocab].
        tokens: int32 [S], see `Drawer`; None if nothing was drawn.
    """

    logits: Tensor
    tokens: Tensor | None = None


def choose_drawer(device: torch.device, vocab_size: int) -> Drawer | None:
    """The kernel, where there is a GPU; None if the host draws."""
    if device.type != "cuda":
        return None
    if vocab_size > LARGEST_VOCAB:
        _log.info("the host draws all tokens", reason=f"the vocabulary is larger than {LARGEST_VOCAB}")
        return None
    from trimaran_kernels.gpu.sampling import draw  # noqa: PLC0415 Triton only where it is used

    return draw


def fill_draws(fields: Mapping[str, NDArray[np.generic]], draws: Sequence[Draw]) -> None:
    """Write how rows are drawn; rows beyond are not wanted.

    Args:
        fields: by the names of `DRAW_FIELDS`, at least as many rows.
        draws: one for each of the first rows.
    """
    n = len(draws)
    fields["temperatures"][n:] = NOT_WANTED.temperature
    for row, draw in enumerate(draws):
        fields["temperatures"][row] = min(draw.temperature, _HOTTEST)
        fields["top_ks"][row] = min(draw.top_k, _KEEPS_ALL)
        fields["top_ps"][row] = draw.top_p
        fields["min_ps"][row] = _rounded_up(draw.min_p)
        fields["shares"][row] = draw.share


def draw_now(drawer: Drawer, logits: Tensor, draws: Sequence[Draw]) -> Tensor:
    """The tokens, int32 [S], of logits [S, vocab]; `draws` are as many."""
    fields = {name: torch.zeros(len(draws), dtype=dtype) for name, dtype in DRAW_FIELDS.items()}
    fill_draws({name: field.numpy() for name, field in fields.items()}, draws)
    wanted = DrawInputs(**{name: field.to(logits.device) for name, field in fields.items()})
    out = torch.empty(len(draws), dtype=torch.int32, device=logits.device)
    with entered(logits.device):  # that of the head: not the current one, if layers are on several
        return drawer(logits.contiguous(), wanted, out)


class HostSide:
    """Where a step's results arrive on the host: memory that stays, pinned for a GPU.

    Args:
        device: where they come from.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._rows = torch.empty(0, 0)
        self._tokens = torch.empty(0, dtype=torch.int32)

    def fetch(self, computed: Computed, rows: Sequence[int]) -> tuple[Tensor, list[int]]:
        """Logits of some rows, good until the next call, and all tokens; waits for the device.

        Args:
            computed: where they are.
            rows: in ascending order.
        """
        logits, tokens = computed.logits, computed.tokens
        if not self._on_gpu:
            # A copy of all rows would take longer than greedy draws from them.
            wanted = logits if len(rows) == len(logits) else logits[list(rows)]
            return wanted.cpu(), [] if tokens is None else tokens.tolist()
        self._make_room(len(rows), logits)
        for place, row in enumerate(rows):
            self._rows[place].copy_(logits[row], non_blocking=True)
        if tokens is not None:
            self._tokens[: len(tokens)].copy_(tokens, non_blocking=True)
        torch.cuda.current_stream(logits.device).synchronize()
        return self._rows[: len(rows)], [] if tokens is None else self._tokens[: len(tokens)].tolist()

    def _make_room(self, n_rows: int, logits: Tensor) -> None:
        """For twice as many as are needed now, if there are too few."""
        n, vocab = logits.shape
        if len(self._rows) < n_rows:
            self._rows = torch.empty(min(n, 2 * n_rows), vocab, pin_memory=True)
        if len(self._tokens) < n:
            self._tokens = torch.empty(2 * n, dtype=torch.int32, pin_memory=True)


def _rounded_up(value: float) -> np.float32:
    """The least float32 that is not below: the same weights reach it."""
    rounded = np.float32(value)
    return rounded if rounded >= value else np.nextafter(rounded, np.float32(np.inf))
