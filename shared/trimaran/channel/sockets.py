"""The two kinds of sockets, opened with every bound set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import zmq
from zmq.auth.thread import ThreadAuthenticator

from trimaran.channel.curve import CurveKeys, OneKey
from trimaran.channel.endpoint import lock_socket_file, refuse_open_network, split_endpoint
from trimaran.channel.options import ChannelOptions
from trimaran.errors import ConfigError, PeerError


class Listener:
    """A bound ROUTER socket with what belongs to it: context, lock, authenticator."""

    def __init__(self, endpoint: str, options: ChannelOptions, context_type: type[zmq.Context[Any]]) -> None:
        scheme, address = split_endpoint(endpoint)
        self._lock = lock_socket_file(address) if scheme == "ipc" else None
        self._authenticator: ThreadAuthenticator | None = None
        self._context = context_type()
        self.socket: Any = self._context.socket(zmq.ROUTER)
        try:
            bound_queues(self.socket, options)
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
            refuse_open_network(address)
            return
        self._authenticator = ThreadAuthenticator(zmq.Context(self._context))
        self._authenticator.configure_curve_callback(credentials_provider=OneKey(keys.public))
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
        """Unbind, and let the socket file go. May be called twice."""
        if self.socket.closed:
            return
        self.socket.close()
        if self._authenticator is not None:
            self._authenticator.stop()
        self._context.term()
        if self._lock is not None:
            self._lock.release()


def connect(endpoint: str, options: ChannelOptions, context: zmq.Context[Any]) -> Any:
    """A DEALER socket that connects by itself; on an error it ends the context too."""
    socket: Any = context.socket(zmq.DEALER)
    try:
        scheme, address = split_endpoint(endpoint)
        bound_queues(socket, options)
        socket.setsockopt(zmq.IMMEDIATE, 1)
        socket.setsockopt(zmq.RECONNECT_IVL, 50)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        if scheme == "tcp":
            if options.curve is None:
                refuse_open_network(address)
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


def bound_queues(socket: zmq.Socket[Any], options: ChannelOptions) -> None:
    """Set every bound there is."""
    socket.setsockopt(zmq.LINGER, milliseconds(options.linger_s))
    socket.setsockopt(zmq.SNDHWM, options.high_water)
    socket.setsockopt(zmq.RCVHWM, options.high_water)
    socket.setsockopt(zmq.MAXMSGSIZE, options.max_frame_bytes)


def milliseconds(seconds: float) -> int:
    """Rounded up: no wait ends early."""
    return max(0, int(seconds * 1000 + 0.999))
