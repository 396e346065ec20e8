"""One request's answer on its way from the engine's link to the one task that reads it."""

from __future__ import annotations

import asyncio
from collections import deque

from trimaran.errors import TrimaranError
from trimaran.wire import TokenBatch

MAX_PENDING_BATCHES = 2048


class EngineStream:
    """A bounded mailbox of token batches; iterate over it until the batch with a finish reason.

    Raises (while iterating): the error that `fail` was given, once what arrived before it is read.
    """

    def __init__(self, request_id: str, max_pending: int = MAX_PENDING_BATCHES) -> None:
        self.request_id = request_id
        self.is_over = False
        self._pending: deque[TokenBatch] = deque()
        self._max_pending = max_pending
        self._error: TrimaranError | None = None
        self._arrived = asyncio.Event()

    def put(self, batch: TokenBatch) -> bool:
        """Deliver a batch. False if the reader is so slow that the mailbox is full: the request is lost."""
        if len(self._pending) >= self._max_pending:
            return False
        self._pending.append(batch)
        self._arrived.set()
        return True

    @property
    def has_failed(self) -> bool:
        """Whether nobody waits for further batches, since the reader gets an error."""
        return self._error is not None

    def fail(self, error: TrimaranError) -> None:
        """Let the reader raise `error`."""
        self._error = error
        self._arrived.set()

    def __aiter__(self) -> EngineStream:
        return self

    async def __anext__(self) -> TokenBatch:
        if self.is_over:
            raise StopAsyncIteration
        while not self._pending:
            if self._error is not None:
                self.is_over = True
                raise self._error
            self._arrived.clear()
            await self._arrived.wait()
        batch = self._pending.popleft()
        self.is_over = batch.finish_reason is not None
        return batch
