"""What all layers of one forward pass share."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from trimaran.timeline import Tracer

from trimaran_attn.kv_cache import LatentCache
from trimaran_attn.model.batch import Batch, Segment

T = TypeVar("T")


@dataclass(frozen=True)
class Ragged:
    """A batch as the native kernels take it.

    Attributes:
        cos, sin: float32 [T, rope / 2].
        slots: int32 [T].
        segments: int32 [S, 5]: first row, length, position, first index in `page_table`, absorbed or not.
        page_table: int32 [P], the requests' pages one after another.
    """

    cos: NDArray[np.float32]
    sin: NDArray[np.float32]
    slots: NDArray[np.int32]
    segments: NDArray[np.int32]
    page_table: NDArray[np.int32]


@dataclass(frozen=True)
class Step:
    """One forward pass.

    Attributes:
        batch: the tokens.
        cos, sin: [T, rope / 2] of their positions.
        cache: where their latents go.
        tracer: records what the layers do, if it is asked to.
        deferred: by layer, the call for experts that the next layer adds.
    """

    batch: Batch
    cos: Tensor
    sin: Tensor
    cache: LatentCache
    tracer: Tracer
    deferred: dict[int, Any] = field(default_factory=dict)
    _ragged: dict[Hashable, Ragged] = field(default_factory=dict)
    _shared: dict[Hashable, Any] = field(default_factory=dict)

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` returns, made by the first layer that asks and shared by the others."""
        if key not in self._shared:
            self._shared[key] = make()
        made: T = self._shared[key]
        return made

    def ragged(self, form: Hashable, absorbs: Callable[[Segment], bool]) -> Ragged:
        """The batch for the native kernels, made once for each form of the attention.

        Args:
            form: what `absorbs` goes by.
            absorbs: which form a segment gets.
        """
        if form not in self._ragged:
            self._ragged[form] = self._make_ragged(absorbs)
        return self._ragged[form]

    def _make_ragged(self, absorbs: Callable[[Segment], bool]) -> Ragged:
        rows: list[tuple[int, int, int, int, int]] = []
        pages: list[int] = []
        for segment in self.batch.segments:
            start, absorbed = segment.rows.start, int(absorbs(segment))
            rows.append((start, segment.length, segment.position, len(pages), absorbed))
            pages += segment.pages
        return Ragged(
            self.cos.numpy(),
            self.sin.numpy(),
            self.batch.slots.int().numpy(),
            np.array(rows, np.int32).reshape(-1, 5),
            np.array(pages, np.int32),
        )
