"""How a call of one layer runs on all shards: natively by doorbells, or by messages, link by link."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

from trimaran.errors import TrimaranError
from trimaran.wire import Status
from trimaran_kernels.hop import HopCall, HopLine

from trimaran_attn.experts_client.link import ShardLink
from trimaran_attn.experts_client.statuses import status_error
from trimaran_attn.experts_client.transports import (
    Batch,
    DoorbellTransport,
    MailTransport,
    Reply,
    Sums,
    Transport,
)

SLICE_S = 0.2
"""How long a wait may go on before it looks whether the peer is still there, in seconds."""

_MAX_SEQUENCE = 2**32 - 1


class Flight(Protocol):
    """A call on its way to all shards."""

    def finish(self, y: Sums, deadline: float) -> None:
        """Wait until `y` is the sum of the answers.

        Raises:
            PeerError: a shard went away, or did not answer before `deadline` (of time.monotonic).
            KernelError: a shard refused the call.
        """
        ...

    def abandon(self) -> None:
        """Nobody will wait any more: slots are free once their shards are done with them."""
        ...


class Calls(Protocol):
    """Starts calls. Use it from one thread."""

    def start(self, batch: Batch) -> Flight | None:
        """Start a call of at most a slot's tokens; None if slots are missing.

        Raises:
            PeerError: a shard is away.
        """
        ...


class DoorbellCalls:
    """One native call starts all shards, another one waits for them and adds up."""

    def __init__(self, links: Sequence[ShardLink]) -> None:
        self._links = tuple(links)
        self._transports: list[Transport] = []  # that the lines are of
        self._lines: list[HopLine] = []

    def start(self, batch: Batch) -> Flight | None:
        """See `Calls.start`."""
        transports = [link.require_transport() for link in self._links]
        if transports != self._transports:
            self._transports = transports
            self._lines = [one.line for one in transports if isinstance(one, DoorbellTransport)]
        call = HopCall.start(self._lines, batch.layer, batch.x, batch.ids, batch.weights)
        return None if call is None else DoorbellFlight(self._links, transports, call, batch.layer)


class DoorbellFlight:
    """See `Flight`."""

    __slots__ = ("_call", "_layer", "_links", "_transports")

    def __init__(
        self, links: Sequence[ShardLink], transports: Sequence[Transport], call: HopCall, layer: int
    ) -> None:
        self._links = links
        self._transports = transports
        self._call = call
        self._layer = layer

    def finish(self, y: Sums, deadline: float) -> None:
        """See `Flight.finish`. Sleeps without the GIL."""
        while True:
            for link, transport in zip(self._links, self._transports, strict=True):
                if link.transport is not transport:
                    raise link.lost_error()
            left = deadline - time.monotonic()
            status = self._call.collect(min(SLICE_S, max(0.0, left)), y)
            if status == Status.OK:
                return
            link = self._links[self._call.shard]
            if status is not None:
                raise _refused(link, self._layer, Reply(status))
            if left <= 0:
                link.lose("did not answer in time")
            for link in self._links:
                link.pump(0)

    def abandon(self) -> None:
        """See `Flight.abandon`."""
        self._call.abandon()


class MailCalls:
    """One link after another."""

    def __init__(self, links: Sequence[ShardLink]) -> None:
        self._links = tuple(links)
        self._sequence = 0

    def start(self, batch: Batch) -> Flight | None:
        """See `Calls.start`."""
        transports = [_mail_transport(link) for link in self._links]
        if not all(transport.free_slots() for transport in transports):
            return None
        self._sequence = self._sequence % _MAX_SEQUENCE + 1
        flight = MailFlight(self._sequence, batch.layer)
        try:
            for link in self._links:
                flight.add(link, batch)
        except BaseException:
            flight.abandon()
            raise
        return flight


class MailFlight:
    """See `Flight`."""

    def __init__(self, sequence: int, layer: int) -> None:
        self._sequence = sequence
        self._layer = layer
        self._places: list[tuple[ShardLink, MailTransport, int]] = []  # the int is the slot

    def add(self, link: ShardLink, batch: Batch) -> None:
        """Submit to one more shard."""
        with link.lock:  # the slot and the message belong to the same session
            transport = _mail_transport(link)
            self._places.append((link, transport, transport.submit(self._sequence, batch)))

    def finish(self, y: Sums, deadline: float) -> None:
        """See `Flight.finish`."""
        y[:] = 0
        while self._places:
            link, transport, slot = self._places[0]
            reply = self._wait(link, transport, slot, y, deadline)
            self._places.pop(0)
            transport.release(slot)
            if reply.status != Status.OK:
                raise _refused(link, self._layer, reply)

    def _wait(self, link: ShardLink, transport: MailTransport, slot: int, y: Sums, deadline: float) -> Reply:
        while link.transport is transport:
            left = deadline - time.monotonic()
            reply = transport.wait(slot, self._sequence, y, min(SLICE_S, max(0.0, left)))
            if reply is not None:
                return reply
            if left <= 0:
                link.lose("did not answer in time")
            link.pump(0)
        raise link.lost_error()

    def abandon(self) -> None:
        """See `Flight.abandon`."""
        for _, transport, slot in self._places:
            transport.abandon(slot, self._sequence)
        self._places.clear()


def _mail_transport(link: ShardLink) -> MailTransport:
    transport = link.require_transport()
    assert isinstance(transport, MailTransport)
    return transport


def _refused(link: ShardLink, layer: int, reply: Reply) -> TrimaranError:
    if reply.status == Status.SHUTTING_DOWN:
        link.lose("is shutting down")
    return status_error(reply.status, link.endpoint, layer, reply.message)
