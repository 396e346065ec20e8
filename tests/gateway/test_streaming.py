from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from trimaran_gateway.streaming import ChunkStream, ClientGoneError


class Left:
    """A request whose client has left."""

    async def receive(self) -> dict[str, Any]:
        return {"type": "http.disconnect"}


async def read_all(stream: ChunkStream) -> None:
    while await stream.next(5) is not None:
        pass


def test_a_backlog_does_not_hide_that_the_client_left() -> None:
    made = 0

    async def chunks() -> AsyncGenerator[bytes]:
        nonlocal made
        while made < 10_000:
            made += 1
            yield b"x"

    async def scenario() -> None:
        stream = ChunkStream(Left(), chunks())  # type: ignore[arg-type]
        with pytest.raises(ClientGoneError):
            await read_all(stream)
        await stream.close()

    asyncio.run(scenario())
    assert made < 1000
