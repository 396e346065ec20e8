"""Typed messages over ZeroMQ: the only package that imports zmq.

A server is a ROUTER socket that knows its peers by an opaque id; a client is a DEALER that reconnects by
itself. Each comes in a blocking and in an asyncio flavour. On the wire a message is one msgpack frame, then
up to `MAX_FRAMES` raw frames for tensors.

Nothing here waits without a bound: `send` never blocks (it answers False when the peer is away or its queue
is full), `recv` takes a timeout, and closing lingers for `ChannelOptions.linger_s` at most. What a peer sends
wrongly becomes a `Malformed` event; it never raises.
"""

from trimaran.channel.asynchronous import AsyncClient, AsyncServer
from trimaran.channel.blocking import Client, Server
from trimaran.channel.codec import MAX_FRAMES, Malformed, Received
from trimaran.channel.curve import CurveKeys
from trimaran.channel.options import ChannelOptions

__all__ = [
    "MAX_FRAMES",
    "AsyncClient",
    "AsyncServer",
    "ChannelOptions",
    "Client",
    "CurveKeys",
    "Malformed",
    "Received",
    "Server",
]
