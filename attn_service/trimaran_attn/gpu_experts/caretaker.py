"""Looks after the resident experts between steps: counts, exchanges, keeps the heat."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from trimaran.telemetry import Log

from trimaran_attn.gpu_experts.heat import Heat
from trimaran_attn.gpu_experts.placement import best_swap
from trimaran_attn.gpu_experts.resident import ResidentLayer
from trimaran_attn.metrics import Tally, add_counts

LOOK_S = 2.0
SAVE_S = 60.0
Routed = Callable[[], Mapping[int, Sequence[int]]]
"""By layer, tokens that the expert services computed of each expert."""

_log = Log(__name__)


class Caretaker:
    """Owned by the engine's thread.

    Args:
        layers: the residents.
        heat: so far.
        keep: writes the heat down.
        routed: what the expert services count.
        clock: seconds.

    Attributes:
        tally: at most some seconds old; replaced as a whole, so that other threads may read it.
    """

    def __init__(
        self,
        layers: Sequence[ResidentLayer],
        heat: Heat,
        keep: Callable[[Heat], None],
        routed: Routed,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._layers = {layer.layer: layer for layer in layers}
        self._heat = heat
        self._keep = keep
        self._routed = routed
        self._clock = clock
        self._next_look = self._next_save = clock()
        self._is_news = False
        nbytes = sum(layer.stack.nbytes for layer in layers)
        self.tally = Tally(nbytes=nbytes, n_experts=sum(len(layer.experts) for layer in layers))

    def tend(self, *, idle: bool) -> None:
        """Between two steps: look now and then, and if there is nothing to do exchange one expert at most."""
        now = self._clock()
        if now < self._next_look:
            return
        self._next_look = now + LOOK_S
        self._count()
        if idle:
            self._exchange()
        if now >= self._next_save:
            self._next_save = now + SAVE_S
            self._save()

    def close(self) -> None:
        """Keep what was learnt."""
        self._count()
        self._save()

    def _save(self) -> None:
        if self._is_news:
            self._keep(self._heat)
            self._is_news = False

    def _count(self) -> None:
        ours, theirs = {number: layer.served() for number, layer in self._layers.items()}, self._routed()
        for source, counts in (("here", ours), ("expert services", theirs)):
            self._is_news |= self._heat.observe(source, counts)
        totals = add_counts(ours, theirs)
        served, all_routes = sum(map(sum, ours.values())), sum(map(sum, totals.values()))
        self.tally = Tally(
            ours, served / all_routes if all_routes else 0.0, self.tally.nbytes, self.tally.n_experts
        )

    def _exchange(self) -> None:
        residents = {number: layer.experts for number, layer in self._layers.items()}
        swap = best_swap(self._heat.counts, residents)
        if swap is not None:
            self._layers[swap.layer].exchange(swap.slot, swap.incoming)
            _log.debug("exchanged", layer=swap.layer, outgoing=swap.outgoing, incoming=swap.incoming)
