"""Both ends for asyncio."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import msgspec
import zmq.asyncio

from trimaran.channel.codec import Codec, Malformed, Received
from trimaran.channel.frames import Buffer, receive_async, send_async
from trimaran.channel.options import ChannelOptions
from trimaran.channel.sockets import Listener, connect

In = TypeVar("In")
Out = TypeVar("Out", bound=msgspec.Struct)


class AsyncServer(Generic[In, Out]):
    """`Server` for asyncio; create it inside a running loop. Arguments and errors are the same."""

    def __init__(self, endpoint: str, receives: Any, options: ChannelOptions | None = None) -> None:
        options = options or ChannelOptions()
        self._codec: Codec[In] = Codec(receives)
        self._listener = Listener(endpoint, options, zmq.asyncio.Context)
        self._socket: zmq.asyncio.Socket = self._listener.socket

    @property
    def endpoint(self) -> str:
        """Where clients connect, with the port that was taken."""
        return self._listener.endpoint

    async def recv(self, timeout_s: float | None = None) -> Received[In] | Malformed | None:
        """The next message, or None after `timeout_s`; without a timeout, wait until cancelled."""
        parts = await receive_async(self._socket, timeout_s)
        return None if parts is None else self._codec.decode_routed(parts)

    async def send(self, peer: bytes, message: Out, frames: Sequence[Buffer] = ()) -> bool:
        """Queue `message` for `peer`. False if it is gone or too slow to take it."""
        return await send_async(self._socket, [peer, self._codec.encode(message), *frames])

    def close(self) -> None:
        """Unbind and remove the socket file. May be called twice."""
        self._listener.close()


class AsyncClient(Generic[In, Out]):
    """`Client` for asyncio; create it inside a running loop. Arguments are the same."""

    def __init__(self, endpoint: str, receives: Any, options: ChannelOptions | None = None) -> None:
        options = options or ChannelOptions()
        self._codec: Codec[In] = Codec(receives)
        self._context = zmq.asyncio.Context()
        self._socket: zmq.asyncio.Socket = connect(endpoint, options, self._context)

    async def recv(self, timeout_s: float | None = None) -> Received[In] | Malformed | None:
        """The next message, or None after `timeout_s`; without a timeout, wait until cancelled."""
        parts = await receive_async(self._socket, timeout_s)
        return None if parts is None else self._codec.decode(b"", parts)

    async def send(self, message: Out, frames: Sequence[Buffer] = ()) -> bool:
        """Queue `message`. False if no server is connected or the queue is full."""
        return await send_async(self._socket, [self._codec.encode(message), *frames])

    def close(self) -> None:
        """Disconnect. May be called twice."""
        self._socket.close()
        self._context.term()
