"""HTTP connections that do not wait for ever for a request: sockets are few, and a client's cost nothing."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_TIMEOUT_S = 60.0
"""Time from a connection's beginning, or a later request's first byte, to the end of the request's headers.

Between requests uvicorn's own, shorter bound holds; a body's is `middleware.BODY_TIMEOUT_S`.
"""


class PunctualProtocol(H11Protocol):
    """uvicorn's HTTP/1.1, which has no such bound."""

    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client connected."""
        super().connection_made(transport)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        """Some bytes came."""
        super().data_received(data)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._end_timer()
        super().connection_lost(exc)

    def _expect_head(self) -> None:
        """Run the timer if headers are missing; bytes that come drop by drop do not prolong it."""
        if self.conn.their_state is not h11.IDLE or self.transport.is_closing():
            self._end_timer()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self.timeout_keep_alive_handler)

    def _end_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
