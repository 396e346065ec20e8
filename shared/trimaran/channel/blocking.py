"""Both ends for a blocking loop."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import msgspec
import zmq

from trimaran.channel.codec import Codec, Malformed, Received
from trimaran.channel.frames import Buffer, receive, send_now
from trimaran.channel.options import ChannelOptions
from trimaran.channel.sockets import Listener, connect, milliseconds

_RECEIVE_BATCH = 1024

In = TypeVar("In")
Out = TypeVar("Out", bound=msgspec.Struct)


class Server(Generic[In, Out]):
    """The bound end of a channel, for a blocking loop. Use it from one thread.

    Args:
        endpoint: ``ipc:///path.sock`` or ``tcp://host:port`` (port 0 takes a free one; see `endpoint`).
        receives: the union of message types that may arrive.

    Raises:
        ConfigError: a bad endpoint, or one that other hosts can reach without CURVE keys.
        PeerError: another process already serves this endpoint.
    """

    def __init__(self, endpoint: str, receives: Any, options: ChannelOptions | None = None) -> None:
        options = options or ChannelOptions()
        self._codec: Codec[In] = Codec(receives)
        self._listener = Listener(endpoint, options, zmq.Context)
        self._socket: zmq.Socket[bytes] = self._listener.socket

    @property
    def endpoint(self) -> str:
        """Where clients connect, with the port that was taken."""
        return self._listener.endpoint

    def poll(self, timeout_s: float | None, wakers: Sequence[int] = ()) -> bool:
        """Wait for a message for up to `timeout_s`; 0 only looks, None waits until there is one.

        A readable descriptor among `wakers` ends the wait too. Says whether there is a message.
        """
        timeout = None if timeout_s is None else milliseconds(timeout_s)
        if not wakers:
            return bool(self._socket.poll(timeout))
        poller = zmq.Poller()
        for source in (self._socket, *wakers):
            poller.register(source, zmq.POLLIN)
        return self._socket in dict(poller.poll(timeout))

    def recv(self, timeout_s: float) -> Received[In] | Malformed | None:
        """The next message, or None after `timeout_s`."""
        return self._codec.decode_routed(receive(self._socket)) if self.poll(timeout_s) else None

    def recv_all(self, limit: int = _RECEIVE_BATCH) -> list[Received[In] | Malformed]:
        """Every message that is there now, `limit` at most, without waiting."""
        events: list[Received[In] | Malformed] = []
        while len(events) < limit and self.poll(0):
            events.append(self._codec.decode_routed(receive(self._socket)))
        return events

    def send(self, peer: bytes, message: Out, frames: Sequence[Buffer] = ()) -> bool:
        """Queue `message` for `peer`. False if it is gone or too slow to take it. `frames` are not copied."""
        return send_now(self._socket, [peer, self._codec.encode(message), *frames])

    def close(self) -> None:
        """Unbind and remove the socket file. May be called twice."""
        self._listener.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Client(Generic[In, Out]):
    """The connecting end of a channel, for a blocking loop. Use it from one thread.

    Connecting succeeds at once, whether or not a server is there: messages are only taken (`send` answers
    True) while a connection stands.
    """

    def __init__(self, endpoint: str, receives: Any, options: ChannelOptions | None = None) -> None:
        options = options or ChannelOptions()
        self._codec: Codec[In] = Codec(receives)
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] = connect(endpoint, options, self._context)

    @property
    def connected(self) -> bool:
        """Whether a message would be taken now. False as soon as the server's process is gone."""
        return bool(self._socket.poll(0, zmq.POLLOUT))

    def poll(self, timeout_s: float) -> bool:
        """Wait for a message for up to `timeout_s`; 0 only looks."""
        return bool(self._socket.poll(milliseconds(timeout_s)))

    def recv(self, timeout_s: float) -> Received[In] | Malformed | None:
        """The next message, or None after `timeout_s`."""
        return self._codec.decode(b"", receive(self._socket)) if self.poll(timeout_s) else None

    def recv_all(self, limit: int = _RECEIVE_BATCH) -> list[Received[In] | Malformed]:
        """Every message that is there now, `limit` at most, without waiting."""
        events: list[Received[In] | Malformed] = []
        while len(events) < limit and self.poll(0):
            events.append(self._codec.decode(b"", receive(self._socket)))
        return events

    def send(self, message: Out, frames: Sequence[Buffer] = ()) -> bool:
        """Queue `message`. False if no server is connected or the queue is full. `frames` are not copied."""
        return send_now(self._socket, [self._codec.encode(message), *frames])

    def close(self) -> None:
        """Disconnect. May be called twice."""
        self._socket.close()
        self._context.term()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
