"""A message's frames through a socket."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import zmq
import zmq.asyncio

from trimaran.channel.sockets import milliseconds

Buffer = bytes | bytearray | memoryview


def receive(socket: zmq.Socket[bytes]) -> list[memoryview]:
    """All frames of the message that `poll` saw. Tensors keep ZeroMQ's own buffer: no copy."""
    return _views(socket.recv_multipart(copy=False))


async def receive_async(socket: zmq.asyncio.Socket, timeout_s: float | None) -> list[memoryview] | None:
    """All frames of the next message, or None after `timeout_s`."""
    if timeout_s is not None and not await socket.poll(milliseconds(timeout_s)):
        return None
    return _views(await socket.recv_multipart(copy=False))


def send_now(socket: zmq.Socket[bytes], parts: Sequence[Buffer]) -> bool:
    """Queue a message; False if nobody takes it."""
    try:
        socket.send_multipart(parts, zmq.NOBLOCK, copy=False)
    except zmq.ZMQError as error:
        if error.errno in (zmq.EAGAIN, zmq.EHOSTUNREACH):
            return False
        raise
    return True


async def send_async(socket: zmq.asyncio.Socket, parts: Sequence[Buffer]) -> bool:
    """Queue a message; False if nobody takes it."""
    try:
        await socket.send_multipart(parts, zmq.NOBLOCK, copy=False)
    except zmq.ZMQError as error:
        if error.errno in (zmq.EAGAIN, zmq.EHOSTUNREACH):
            return False
        raise
    return True


def _views(frames: Iterable[zmq.Frame]) -> list[memoryview]:
    return [frame.buffer for frame in frames]
