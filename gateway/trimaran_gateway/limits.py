"""How much one client may ask for: requests and tokens per minute, and requests at once.

A client is an API key or, without one, a network address. Tokens are paid for as they are read and written,
so a client may overdraw its minute by the request that is under way; it then waits until the debt is paid.
"""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from trimaran.config import GatewayConfig

from trimaran_gateway.errors import RETRY_AFTER_S, ApiError

MAX_CLIENTS = 10_000
"""Clients that are remembered; beyond, the one that was idle longest is forgotten."""

_paying: ContextVar[Client | None] = ContextVar("paying", default=None)


class TokenBucket:
    """Holds up to `per_minute` units, is full at first, fills steadily. Times: seconds of one clock."""

    def __init__(self, per_minute: int, now: float) -> None:
        self._capacity = self._level = float(per_minute)
        self._filled_at = now

    def spend(self, amount: float, now: float) -> None:
        """Take units out, more than there are if need be."""
        self._level = self._level_at(now) - amount
        self._filled_at = now

    def wait_s(self, now: float) -> float:
        """Time until there is at least one unit."""
        return max(0.0, 1.0 - self._level_at(now)) * 60 / self._capacity

    def _level_at(self, now: float) -> float:
        return min(self._capacity, self._level + (now - self._filled_at) * self._capacity / 60)


class Client:
    """What one client has left; None is no limit. `active` counts its requests under way."""

    def __init__(self, config: GatewayConfig, clock: Callable[[], float]) -> None:
        per_minute = (config.requests_per_minute, config.tokens_per_minute)
        requests, tokens = (TokenBucket(rate, clock()) if rate else None for rate in per_minute)
        self.requests, self.tokens = requests, tokens
        self.active = 0
        self._clock = clock

    def spend_tokens(self, count: int) -> None:
        """Pay for tokens that were read or written."""
        if self.tokens is not None:
            self.tokens.spend(count, self._clock())


class ClientLimits:
    """Admits requests, client by client.

    Args:
        config: the limits.
        clock: seconds of a clock that only goes forward.
    """

    def __init__(self, config: GatewayConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._config = config
        self._clock = clock
        self._clients: OrderedDict[str, Client] = OrderedDict()

    @contextmanager
    def admitted(self, name: str) -> Iterator[None]:
        """One request of the client `name`, from its arrival to the end of its answer.

        Raises:
            ApiError: 429, with the time to wait.
        """
        client = self._client(name)
        self._check(client)
        client.active += 1
        token = _paying.set(client)
        try:
            yield
        finally:
            _paying.reset(token)
            client.active -= 1

    def _client(self, name: str) -> Client:
        client = self._clients.get(name)
        if client is None:
            client = self._clients[name] = Client(self._config, self._clock)
            self._forget_one()
        self._clients.move_to_end(name)
        return client

    def _forget_one(self) -> None:
        if len(self._clients) > MAX_CLIENTS:
            idle = next((name for name, client in self._clients.items() if not client.active), None)
            if idle is not None:
                del self._clients[idle]

    def _check(self, client: Client) -> None:
        now, config = self._clock(), self._config
        if client.active >= config.max_concurrent_requests:
            raise _too_many(f"{config.max_concurrent_requests} requests at once", RETRY_AFTER_S)
        if client.tokens is not None and (wait := client.tokens.wait_s(now)):
            raise _too_many(f"{config.tokens_per_minute} tokens per minute", wait)
        if client.requests is not None:
            if wait := client.requests.wait_s(now):
                raise _too_many(f"{config.requests_per_minute} requests per minute", wait)
            client.requests.spend(1, now)


def spend_tokens(count: int) -> None:
    """Let the client whose request this is pay for `count` tokens."""
    client = _paying.get()
    if client is not None:
        client.spend_tokens(count)


def address_of(peer: tuple[str, int] | None) -> str:
    """The client's name by its address; a whole IPv6 network of 64 bits is one client."""
    if peer is None:
        return "unknown"
    try:
        address = ipaddress.ip_address(peer[0])
    except ValueError:
        return peer[0]
    if address.version == 4:
        return peer[0]
    return str(ipaddress.ip_network((address, 64), strict=False))


def _too_many(limit: str, wait_s: float) -> ApiError:
    return ApiError(
        429,
        f"rate limit reached: {limit}; try again in {wait_s:.1f} s",
        code="rate_limit_exceeded",
        retry_after=wait_s,
    )
