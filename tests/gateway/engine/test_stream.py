from __future__ import annotations

import asyncio

import pytest
from trimaran.errors import PeerError
from trimaran.wire import TokenBatch
from trimaran_gateway.engine.stream import EngineStream


def batch(token: int, finish: str | None = None) -> TokenBatch:
    return TokenBatch(request_id="r", ids=[token], finish_reason=finish)


async def read(stream: EngineStream) -> list[int]:
    return [part.ids[0] async for part in stream]


def test_batches_come_in_order_and_end() -> None:
    async def scenario() -> None:
        stream = EngineStream("r")
        reader = asyncio.create_task(read(stream))
        await asyncio.sleep(0)
        for token in range(3):
            assert stream.put(batch(token))
            await asyncio.sleep(0)
        stream.put(batch(3, "stop"))
        assert await reader == [0, 1, 2, 3]
        assert stream.is_over
        assert await read(stream) == []

    asyncio.run(scenario())


def test_what_arrived_before_a_failure_is_read_first() -> None:
    async def scenario() -> None:
        stream = EngineStream("r")
        stream.put(batch(7))
        stream.fail(PeerError("gone"))
        assert (await anext(stream)).ids == [7]
        with pytest.raises(PeerError, match="gone"):
            await anext(stream)
        assert stream.is_over

    asyncio.run(scenario())


def test_a_full_mailbox_refuses() -> None:
    async def scenario() -> None:
        stream = EngineStream("r", max_pending=2)
        assert [stream.put(batch(token)) for token in range(3)] == [True, True, False]

    asyncio.run(scenario())
