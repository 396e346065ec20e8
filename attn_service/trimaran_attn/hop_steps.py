"""What a forward pass tells its way to the experts: that it begins, ends, and how much of it is padding."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from torch import Tensor


class HopSteps(Protocol):
    """The experts, as whoever runs steps sees them; `Experts` is how the model does."""

    @property
    def is_attached(self) -> bool:
        """Whether a step's hops are launches like any other, so that it can be recorded."""
        ...

    def step(self) -> AbstractContextManager[None]:
        """Around a forward pass, until its results are on the host; raises what went wrong in its hops."""
        ...

    def padded(self, *live: Tensor) -> AbstractContextManager[None]:
        """Within, only the first `live` rows of every batch are real; int32 [1], one a device."""
        ...

    def close(self) -> None:
        """Give back what was taken from the driver; the last step is over. May be called twice."""
        ...


class PlainSteps:
    """Hops that the host makes by itself: it needs to be told nothing."""

    is_attached = False

    def step(self) -> AbstractContextManager[None]:
        """Nothing to do."""
        return nullcontext()

    def padded(self, *live: Tensor) -> AbstractContextManager[None]:
        """Rows of padding are computed like any other."""
        del live
        return nullcontext()

    def close(self) -> None:
        """Nothing to give back."""
