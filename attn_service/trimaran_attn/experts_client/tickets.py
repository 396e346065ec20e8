"""What the client remembers of layers under way, and of all that crossed."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from trimaran_attn.experts_client.calls import Flight
from trimaran_attn.experts_client.transports import Batch


@dataclass(slots=True, eq=False)
class Ticket:
    """A layer's computation under way.

    Attributes:
        deadline: of time.monotonic.
        sent: tokens that were submitted so far; the rest follow as slots become free.
        flights: calls under way, and which tokens each is for: [start, stop).
    """

    batch: Batch
    deadline: float
    sent: int = 0
    started: bool = False
    flights: deque[tuple[Flight, int, int]] = field(default_factory=deque)

    @property
    def is_sent(self) -> bool:
        """Whether nothing is left to submit; an empty batch crosses too, once."""
        return self.started and self.sent >= len(self.batch)

    def abandon(self) -> None:
        """Give up the calls under way; what they answer is dropped."""
        while self.flights:
            flight, _, _ = self.flights.popleft()
            flight.abandon()


@dataclass
class Traffic:
    """Bytes of tensors that went to each shard and came back."""

    sent: int = 0
    received: int = 0

    def counters(self) -> dict[str, float]:
        """By the names of the exported metrics."""
        return {
            'transport_bytes_total{direction="to_experts"}': float(self.sent),
            'transport_bytes_total{direction="from_experts"}': float(self.received),
        }
