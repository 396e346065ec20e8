"""What drawing tokens on a GPU takes in, and what it may answer in place of a token."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

LARGEST_VOCAB = 1 << 18
"""Beyond, the sum of all tokens' masses would not be sure to stay below 2^62."""

NOT_FINITE = -1
"""In place of a token: the row holds NaN or infinities."""
NOT_WANTED = -2
"""In place of a token: somebody else draws it."""


@dataclass(frozen=True)
class DrawInputs:
    """How each of R rows is drawn, on the device.

    Attributes:
        temperatures: float32 [R], 0 takes the likeliest token, below 0 the row is not wanted.
        top_ks: int32 [R], 0 keeps all.
        top_ps: float64 [R], 1 keeps all.
        min_ps: float32 [R], 0 keeps all.
        shares: float64 [R], random numbers: at least 0, below 1.
    """

    temperatures: Tensor
    top_ks: Tensor
    top_ps: Tensor
    min_ps: Tensor
    shares: Tensor
