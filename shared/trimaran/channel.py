"""Typed messages over ZeroMQ: the only file that imports zmq.

A server is a ROUTER socket that knows its peers by an opaque id; a client is a DEALER that reconnects by
itself. Each comes in a blocking and in an asyncio flavour. On the wire a message is one msgpack frame, then
up to `MAX_FRAMES` raw frames for tensors.

Nothing here waits without a bound: `send` never blocks (it answers False when the peer is away or its queue
is full), `recv` takes a timeout, and closing lingers for `ChannelOptions.linger_s` at most. What a peer sends
wrongly becomes a `Malformed` event; it never raises.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import msgspec
import zmq
import zmq.asyncio
import zmq.auth
from zmq.auth.thread import ThreadAuthenticator

from trimaran.errors import ConfigError, PeerError

MAX_FRAMES = 8
"""Raw frames that may follow a message."""

_MAX_SOCKET_PATH = 107
_RECEIVE_BATCH = 1024

In = TypeVar("In")
Out = TypeVar("Out", bound=msgspec.Struct)
Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True)
class CurveKeys:
    """CURVE key pairs (Z85 text) of a cluster: every member holds the same pair and admits nobody else."""

    public: bytes
    secret: bytes = field(repr=False)

    @classmethod
    def generate(cls) -> CurveKeys:
        """A fresh pair."""
        return cls(*zmq.curve_keypair())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CurveKeys:
        """Read a pair from a `.key_secret` file (ZeroMQ's certificate format) that only its owner may read.

        Raises:
            ConfigError: the file is missing, readable by others, or no secret certificate.
        """
        try:
            if Path(path).stat().st_mode & 0o077:
                raise ConfigError(f"{path}: others may read this secret key", remedy=f"chmod 600 {path}")
            public, secret = zmq.auth.load_certificate(path)
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}: no CURVE key file: {error}") from error
        if secret is None:
            raise ConfigError(f"{path}: holds no secret key", remedy="give the .key_secret file")
        return cls(public, secret)


@dataclass(frozen=True)
class ChannelOptions:
    """Bounds of a channel.

    Attributes:
        high_water: messages queued per peer and direction before `send` answers False.
        linger_s: how long closing may wait for unsent messages.
        max_frame_bytes: a peer that sends a larger frame is disconnected.
        curve: keys for endpoints that other hosts can reach.
    """

    high_water: int = 1000
    linger_s: float = 0.5
    max_frame_bytes: int = 1 << 30
    curve: CurveKeys | None = None


@dataclass(frozen=True)
class Received(Generic[In]):
    """One message. `peer` is the sender's id on a server and empty on a client; `frames` hold its tensors."""

    peer: bytes
    message: In
    frames: tuple[memoryview, ...] = ()


@dataclass(frozen=True)
class Malformed:
    """Something that is no message of this channel arrived from `peer`; `reason` is one line for the log."""

    peer: bytes
    reason: str


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
        self._codec: _Codec[In] = _Codec(receives)
        self._listener = _Listener(endpoint, options, zmq.Context)
        self._socket: zmq.Socket[bytes] = self._listener.socket

    @property
    def endpoint(self) -> str:
        """Where clients connect, with the port that was taken."""
        return self._listener.endpoint

    def poll(self, timeout_s: float | None, wakers: Sequence[int] = ()) -> bool:
        """Wait for a message for up to `timeout_s`; 0 only looks, None waits until there is one.

        A readable descriptor among `wakers` ends the wait too. Says whether there is a message.
        """
        timeout = None if timeout_s is None else _milliseconds(timeout_s)
        if not wakers:
            return bool(self._socket.poll(timeout))
        poller = zmq.Poller()
        for source in (self._socket, *wakers):
            poller.register(source, zmq.POLLIN)
        return self._socket in dict(poller.poll(timeout))

    def recv(self, timeout_s: float) -> Received[In] | Malformed | None:
        """The next message, or None after `timeout_s`."""
        return self._codec.decode_routed(_receive(self._socket)) if self.poll(timeout_s) else None

    def recv_all(self, limit: int = _RECEIVE_BATCH) -> list[Received[In] | Malformed]:
        """Every message that is there now, `limit` at most, without waiting."""
        events: list[Received[In] | Malformed] = []
        while len(events) < limit and self.poll(0):
            events.append(self._codec.decode_routed(_receive(self._socket)))
        return events

    def send(self, peer: bytes, message: Out, frames: Sequence[Buffer] = ()) -> bool:
        """Queue `message` for `peer`. False if it is gone or too slow to take it. `frames` are not copied."""
        return _send(self._socket, [peer, self._codec.encode(message), *frames])

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
        self._codec: _Codec[In] = _Codec(receives)
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] = _connect(endpoint, options, self._context)

    @property
    def connected(self) -> bool:
        """Whether a message would be taken now. False as soon as the server's process is gone."""
        return bool(self._socket.poll(0, zmq.POLLOUT))

    def poll(self, timeout_s: float) -> bool:
        """Wait for a message for up to `timeout_s`; 0 only looks."""
        return bool(self._socket.poll(_milliseconds(timeout_s)))

    def recv(self, timeout_s: float) -> Received[In] | Malformed | None:
        """The next message, or None after `timeout_s`."""
        return self._codec.decode(b"", _receive(self._socket)) if self.poll(timeout_s) else None

    def recv_all(self, limit: int = _RECEIVE_BATCH) -> list[Received[In] | Malformed]:
        """Every message that is there now, `limit` at most, without waiting."""
        events: list[Received[In] | Malformed] = []
        while len(events) < limit and self.poll(0):
            events.append(self._codec.decode(b"", _receive(self._socket)))
        return events

    def send(self, message: Out, frames: Sequence[Buffer] = ()) -> bool:
        """Queue `message`. False if no server is connected or the queue is full. `frames` are not copied."""
        return _send(self._socket, [self._codec.encode(message), *frames])

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


class AsyncServer(Generic[In, Out]):
    """`Server` for asyncio; create it inside a running loop. Arguments and errors are the same."""

    def __init__(self, endpoint: str, receives: Any, options: ChannelOptions | None = None) -> None:
        options = options or ChannelOptions()
        self._codec: _Codec[In] = _Codec(receives)
        self._listener = _Listener(endpoint, options, zmq.asyncio.Context)
        self._socket: zmq.asyncio.Socket = self._listener.socket

    @property
    def endpoint(self) -> str:
        """Where clients connect, with the port that was taken."""
        return self._listener.endpoint

    async def recv(self, timeout_s: float | None = None) -> Received[In] | Malformed | None:
        """The next message, or None after `timeout_s`; without a timeout, wait until cancelled."""
        parts = await _receive_async(self._socket, timeout_s)
        return None if parts is None else self._codec.decode_routed(parts)

    async def send(self, peer: bytes, message: Out, frames: Sequence[Buffer] = ()) -> bool:
        """Queue `message` for `peer`. False if it is gone or too slow to take it."""
        return await _send_async(self._socket, [peer, self._codec.encode(message), *frames])

    def close(self) -> None:
        """Unbind and remove the socket file. May be called twice."""
        self._listener.close()


class AsyncClient(Generic[In, Out]):
    """`Client` for asyncio; create it inside a running loop. Arguments are the same."""

    def __init__(self, endpoint: str, receives: Any, options: ChannelOptions | None = None) -> None:
        options = options or ChannelOptions()
        self._codec: _Codec[In] = _Codec(receives)
        self._context = zmq.asyncio.Context()
        self._socket: zmq.asyncio.Socket = _connect(endpoint, options, self._context)

    async def recv(self, timeout_s: float | None = None) -> Received[In] | Malformed | None:
        """The next message, or None after `timeout_s`; without a timeout, wait until cancelled."""
        parts = await _receive_async(self._socket, timeout_s)
        return None if parts is None else self._codec.decode(b"", parts)

    async def send(self, message: Out, frames: Sequence[Buffer] = ()) -> bool:
        """Queue `message`. False if no server is connected or the queue is full."""
        return await _send_async(self._socket, [self._codec.encode(message), *frames])

    def close(self) -> None:
        """Disconnect. May be called twice."""
        self._socket.close()
        self._context.term()


class _Codec(Generic[In]):
    """Messages of one union to frames and back."""

    def __init__(self, receives: Any) -> None:
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(receives)

    def encode(self, message: msgspec.Struct) -> bytes:
        return self._encoder.encode(message)

    def decode_routed(self, parts: list[memoryview]) -> Received[In] | Malformed:
        return self.decode(bytes(parts[0]), parts[1:])

    def decode(self, peer: bytes, parts: list[memoryview]) -> Received[In] | Malformed:
        if not parts:
            return Malformed(peer, "a message without frames")
        if len(parts) > MAX_FRAMES + 1:
            return Malformed(peer, f"{len(parts) - 1} raw frames; at most {MAX_FRAMES} may follow a message")
        try:
            message: In = self._decoder.decode(parts[0])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return Malformed(peer, f"no message of this channel: {error}")
        return Received(peer, message, tuple(parts[1:]))


class _Listener:
    """A bound ROUTER socket with what belongs to it: context, lock, authenticator."""

    def __init__(self, endpoint: str, options: ChannelOptions, context_type: type[zmq.Context[Any]]) -> None:
        scheme, address = _split(endpoint)
        self._lock = _lock_socket_file(address) if scheme == "ipc" else None
        self._authenticator: ThreadAuthenticator | None = None
        self._context = context_type()
        self.socket: Any = self._context.socket(zmq.ROUTER)
        try:
            _bound_queues(self.socket, options)
            self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
            if scheme == "tcp":
                self._secure(address, options.curve)
            self._bind(endpoint)
            if scheme == "ipc":
                Path(address).chmod(0o600)
        except BaseException:
            self.close()
            raise
        self.endpoint: str = self.socket.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")

    def _secure(self, address: str, keys: CurveKeys | None) -> None:
        if keys is None:
            _refuse_open_network(address)
            return
        self._authenticator = ThreadAuthenticator(zmq.Context(self._context))
        self._authenticator.configure_curve_callback(credentials_provider=_OneKey(keys.public))
        self._authenticator.start()
        self.socket.curve_server = True
        self.socket.curve_secretkey = keys.secret
        self.socket.curve_publickey = keys.public

    def _bind(self, endpoint: str) -> None:
        try:
            self.socket.bind(endpoint)
        except zmq.ZMQError as error:
            if error.errno == zmq.EADDRINUSE:
                raise PeerError(f"{endpoint}: another process already serves here") from error
            raise ConfigError(f"{endpoint}: cannot listen here: {error.strerror}") from error

    def close(self) -> None:
        if self.socket.closed:
            return
        self.socket.close()
        if self._authenticator is not None:
            self._authenticator.stop()
        self._context.term()
        if self._lock is not None:
            self._lock.release()


class _OneKey:
    """The CURVE credentials check: admits the cluster's own key."""

    def __init__(self, public: bytes) -> None:
        self._public = public

    def callback(self, domain: str, key: bytes) -> bool:
        del domain
        return key == self._public


class _SocketLock:
    """Keeps a second server off a socket file: binding an ipc endpoint silently replaces the first one's."""

    def __init__(self, socket_path: Path) -> None:
        self._socket_path = socket_path
        self._path = socket_path.with_name(socket_path.name + ".lock")
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._check_still_there()
        except (BlockingIOError, FileNotFoundError) as error:
            os.close(self._fd)
            raise PeerError(f"{socket_path}: another process already serves here") from error

    def _check_still_there(self) -> None:
        # The last holder may have removed the file between our open and our lock: then somebody else's lock
        # on a new file would not exclude ours.
        if not os.path.samestat(os.fstat(self._fd), self._path.stat()):
            raise BlockingIOError

    def release(self) -> None:
        for path in (self._socket_path, self._path):
            path.unlink(missing_ok=True)
        os.close(self._fd)


def _lock_socket_file(address: str) -> _SocketLock:
    try:
        return _SocketLock(Path(address))
    except OSError as error:
        raise ConfigError(f"ipc://{address}: cannot listen here: {error.strerror}") from error


def _connect(endpoint: str, options: ChannelOptions, context: zmq.Context[Any]) -> Any:
    socket: Any = context.socket(zmq.DEALER)
    try:
        scheme, address = _split(endpoint)
        _bound_queues(socket, options)
        socket.setsockopt(zmq.IMMEDIATE, 1)
        socket.setsockopt(zmq.RECONNECT_IVL, 50)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        if scheme == "tcp":
            if options.curve is None:
                _refuse_open_network(address)
            else:
                socket.curve_serverkey = options.curve.public
                socket.curve_publickey = options.curve.public
                socket.curve_secretkey = options.curve.secret
        socket.connect(endpoint)
    except BaseException as error:
        socket.close()
        context.term()
        if isinstance(error, zmq.ZMQError):
            raise ConfigError(f"{endpoint}: cannot connect: {error.strerror}") from error
        raise
    return socket


def _bound_queues(socket: zmq.Socket[Any], options: ChannelOptions) -> None:
    socket.setsockopt(zmq.LINGER, _milliseconds(options.linger_s))
    socket.setsockopt(zmq.SNDHWM, options.high_water)
    socket.setsockopt(zmq.RCVHWM, options.high_water)
    socket.setsockopt(zmq.MAXMSGSIZE, options.max_frame_bytes)


def _split(endpoint: str) -> tuple[str, str]:
    scheme, separator, address = endpoint.partition("://")
    if not separator or scheme not in ("ipc", "tcp") or not address:
        raise ConfigError(f"endpoint {endpoint!r}: write ipc:///path.sock or tcp://host:port")
    if scheme == "ipc" and len(os.fsencode(address)) > _MAX_SOCKET_PATH:
        raise ConfigError(f"endpoint {endpoint!r}: longer than the {_MAX_SOCKET_PATH} bytes of a Unix socket")
    return scheme, address


def _refuse_open_network(address: str) -> None:
    host = address.rpartition(":")[0].strip("[]")
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(host).is_loopback:
            return
    if host == "localhost":
        return
    raise ConfigError(
        f"tcp://{address}: leaves this host, where anyone could read and submit tensors",
        remedy="use 127.0.0.1, or give CURVE keys",
    )


def _milliseconds(seconds: float) -> int:
    return max(0, int(seconds * 1000 + 0.999))


def _receive(socket: zmq.Socket[bytes]) -> list[memoryview]:
    """All frames of the message that `poll` saw. Tensors keep ZeroMQ's own buffer: no copy."""
    return _views(socket.recv_multipart(copy=False))


async def _receive_async(socket: zmq.asyncio.Socket, timeout_s: float | None) -> list[memoryview] | None:
    if timeout_s is not None and not await socket.poll(_milliseconds(timeout_s)):
        return None
    return _views(await socket.recv_multipart(copy=False))


def _views(frames: Iterable[zmq.Frame]) -> list[memoryview]:
    return [frame.buffer for frame in frames]


def _send(socket: zmq.Socket[bytes], parts: Sequence[Buffer]) -> bool:
    try:
        socket.send_multipart(parts, zmq.NOBLOCK, copy=False)
    except zmq.ZMQError as error:
        if error.errno in (zmq.EAGAIN, zmq.EHOSTUNREACH):
            return False
        raise
    return True


async def _send_async(socket: zmq.asyncio.Socket, parts: Sequence[Buffer]) -> bool:
    try:
        await socket.send_multipart(parts, zmq.NOBLOCK, copy=False)
    except zmq.ZMQError as error:
        if error.errno in (zmq.EAGAIN, zmq.EHOSTUNREACH):
            return False
        raise
    return True
