"""What the gateway needs of its engine: one attention service, or a pool of them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from trimaran.wire import EngineStats, EngineStatus, Generate, TokenBatch

READY_STATES = ("ready", "degraded")


class Answer(Protocol):
    """Batches of tokens as they come, to the one with a finish reason; iterating raises what went wrong."""

    @property
    def is_over(self) -> bool:
        """Whether nothing more comes."""

    async def __anext__(self) -> TokenBatch:
        """The next batch."""


class Engine(Protocol):
    """Takes requests and answers with tokens."""

    @property
    def status(self) -> EngineStatus | None:
        """What it last said; None while none is connected."""

    @property
    def statuses(self) -> Mapping[str, EngineStatus | None]:
        """The same of each attention service, by label."""

    @property
    def is_ready(self) -> bool:
        """Whether requests are accepted now."""

    @property
    def in_flight(self) -> int:
        """Requests that are not answered in full yet."""

    async def start(self) -> None:
        """Connect; returns at once."""

    async def close(self) -> None:
        """Abort what runs and disconnect."""

    async def give_up(self, reason: str) -> None:
        """Abort what runs: each request fails with `reason`."""

    def generate(self, message: Generate) -> AbstractAsyncContextManager[Answer]:
        """Start a request; leaving the context early aborts it.

        Raises:
            PeerError: no engine is there, or it went away.
            RequestError, OverloadedError, InternalEngineError: (while iterating) the engine's refusal.
        """

    async def stats(self) -> EngineStats | None:
        """Its counters now; None if it does not answer in time."""
