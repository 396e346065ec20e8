"""Answers over HTTP that end as soon as the client leaves, streamed or whole."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from trimaran.telemetry import Log

from trimaran_gateway.errors import ApiError, api_error

_QUEUE_CHUNKS = 64
_log = Log(__name__)

T = TypeVar("T")
Chunks = AsyncGenerator[bytes]


class ClientGoneError(Exception):
    """The client closed its connection; nobody reads an answer."""


async def until_disconnect(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Result of `work`, which is cancelled if the client leaves first.

    Raises:
        ClientGoneError: it left.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request.receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError
        return task.result()
    finally:
        await _end(task, gone)


async def open_stream(
    request: Request,
    chunks: Chunks,
    *,
    media_type: str,
    on_error: Callable[[ApiError], bytes],
    keepalive: bytes | None,
    keepalive_s: float,
) -> Response:
    """A streamed answer; a failure before its first chunk becomes a plain HTTP error instead.

    Args:
        chunks: the body; closed early if the client leaves.
        on_error: the last chunk of a stream that fails in the middle.
        keepalive: sent whenever the stream is silent for `keepalive_s` seconds; None sends nothing.

    Raises:
        ClientGoneError: the client left before the first chunk.
        Exception: whatever `chunks` raises before its first chunk, within `keepalive_s`.
    """
    stream = ChunkStream(request, chunks)
    try:
        first = _unless_failed(await stream.next(keepalive_s))
    except BaseException:
        await stream.close()
        raise
    return StreamedAnswer(
        stream, first, media_type=media_type, on_error=on_error, keepalive=keepalive, keepalive_s=keepalive_s
    )


class ChunkStream:
    """Runs a generator of chunks in a task of its own, for as long as the client is there."""

    def __init__(self, request: Request, chunks: Chunks) -> None:
        self._queue: asyncio.Queue[bytes | Exception | None] = asyncio.Queue(_QUEUE_CHUNKS)
        self._pump = asyncio.create_task(self._run(chunks))
        self._gone = asyncio.create_task(_disconnected(request.receive))

    async def next(self, timeout_s: float) -> bytes | Exception | None:
        """All chunks that are there, as one; b"" after `timeout_s`; None at the end; or what went wrong.

        Raises:
            ClientGoneError: the client left.
        """
        get = asyncio.ensure_future(self._queue.get())
        try:
            await asyncio.wait({get, self._gone}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if self._gone.done():  # first: whatever else there is to send, nobody reads it
                raise ClientGoneError
            if get.done():
                return self._join(get.result())
            return b""
        finally:
            get.cancel()

    async def close(self) -> None:
        """Stop the generator."""
        await _end(self._pump, self._gone)

    def _join(self, item: bytes | Exception | None) -> bytes | Exception | None:
        if not isinstance(item, bytes):
            return item
        parts = [item]
        while not self._queue.empty():
            following = self._queue.get_nowait()
            if not isinstance(following, bytes):
                self._queue.put_nowait(following)  # it is the last: nothing comes after an end
                break
            parts.append(following)
        return b"".join(parts)

    async def _run(self, chunks: Chunks) -> None:
        try:
            async with contextlib.aclosing(chunks):
                async for chunk in chunks:
                    await self._queue.put(chunk)
            await self._queue.put(None)
        except Exception as error:
            await self._queue.put(error)


class StreamedAnswer(Response):
    """Sends a `ChunkStream` as it comes."""

    def __init__(
        self,
        stream: ChunkStream,
        first: bytes | None,
        *,
        media_type: str,
        on_error: Callable[[ApiError], bytes],
        keepalive: bytes | None,
        keepalive_s: float,
    ) -> None:
        self.status_code = 200
        self.media_type = media_type
        self.background = None
        self.body = b""
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._stream = stream
        self._first = first
        self._on_error = on_error
        self._keepalive = keepalive
        self._keepalive_s = keepalive_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application."""
        del scope, receive  # the stream listens for the client's leaving
        try:
            await send(
                {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
            )
            async for chunk in self._body():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except (ClientGoneError, OSError):
            _log.debug("the client left")
        finally:
            await self._stream.close()

    async def _body(self) -> AsyncGenerator[bytes]:
        item: bytes | Exception | None = self._first
        while item is not None:
            if isinstance(item, Exception):
                yield self._on_error(self._explain(item))
                return
            if item:
                yield item
            elif self._keepalive is not None:
                yield self._keepalive
            item = await self._stream.next(self._keepalive_s)

    def _explain(self, error: Exception) -> ApiError:
        answer = api_error(error)
        if answer.status_code == 500:
            _log.error("a stream failed", error=repr(error))
        return answer


def _unless_failed(item: bytes | Exception | None) -> bytes | None:
    if isinstance(item, Exception):
        raise item
    return item


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _end(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
