"""The attention service's socket: gateways ask, the engine's thread answers, this loop carries.

It sleeps until a message, an output of the engine or the wish to stop arrives. The number of open requests is
bounded, and so is everything that waits in either direction.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import count

from msgspec.structs import replace
from trimaran.channel import Malformed, Received, Server
from trimaran.lifecycle import Stop
from trimaran.telemetry import Log
from trimaran.timeline import Tracer
from trimaran.wire import (
    Abort,
    EngineStats,
    EngineStatsRequest,
    EngineStatus,
    EngineStatusRequest,
    EngineToGateway,
    EngineTrace,
    GatewayToEngine,
    Generate,
    RequestFailed,
    StartTrace,
    TokenBatch,
    TraceRequest,
)

from trimaran_attn.experts_link import ExpertsLink
from trimaran_attn.metrics import add_counts
from trimaran_attn.worker import EXPERTS_AWAY, AbortCommand, EngineWorker, Output, received

AttnServer = Server[GatewayToEngine, EngineToGateway]

STOP_TIMEOUT_S = 10.0
GOODBYE_S = 0.3
MAX_PEERS = 256
_log = Log(__name__)


@dataclass(frozen=True)
class Route:
    """Where the answers of a request go: to a peer, under the peer's own name for it."""

    peer: bytes
    request_id: str


class AttnService:
    """Serves gateways.

    Args:
        server: where they connect.
        worker: runs the engine; started and stopped here.
        link: whose statistics are passed on.
        max_open: requests that may be open at once, waiting or running.
        tracer: the engine's; its spans are given to who asks.
    """

    def __init__(
        self,
        server: AttnServer,
        worker: EngineWorker,
        link: ExpertsLink,
        max_open: int,
        tracer: Tracer | None = None,
    ) -> None:
        self._server = server
        self._worker = worker
        self._link = link
        self._max_open = max_open
        self._tracer = tracer or Tracer()
        self._routes: dict[str, Route] = {}
        self._keys: dict[Route, str] = {}
        self._aborted: set[str] = set()
        self._numbers = count(1)
        self._peers: dict[bytes, None] = {}

    def run(self, stop: Stop) -> None:
        """Serve until told to stop.

        Raises:
            BaseException: what ended the worker, in most cases a TrimaranError while loading.
        """
        self._worker.start()
        try:
            while not stop.requested:
                self._server.poll(None, (stop.fileno(), self._worker.outbox.fileno()))
                self._read()
                self._publish()
                if self._worker.failure is not None:
                    raise self._worker.failure
        finally:
            if not self._worker.stop(STOP_TIMEOUT_S):
                _log.warning("the engine did not end its step in time", seconds=STOP_TIMEOUT_S)
            self._say_goodbye()

    def _read(self) -> None:
        for event in self._server.recv_all():
            if isinstance(event, Malformed):
                _log.warning("malformed message", reason=event.reason)
            else:
                self._remember(event.peer)
                self._handle(event)

    def _handle(self, event: Received[GatewayToEngine]) -> None:
        peer, message = event.peer, event.message
        match message:
            case Generate():
                self._generate(peer, message)
            case Abort():
                key = self._keys.get(Route(peer, message.request_id))
                if key is not None:
                    self._abort(key)
            case EngineStatusRequest():
                self._send(peer, self._worker.status)
            case EngineStatsRequest():
                self._send(peer, self._stats())
            case StartTrace():
                self._tracer.start(message.steps)
            case TraceRequest():
                spans = self._tracer.stop() if message.take else []
                self._send(peer, EngineTrace(active=self._tracer.active, spans=spans))

    def _generate(self, peer: bytes, message: Generate) -> None:
        route, status = Route(peer, message.request_id), self._worker.status
        refusal = None
        if status.state != "ready":
            refusal = ("unavailable", _why_not(status))
        elif route in self._keys:
            refusal = ("invalid_request", f"request id {message.request_id!r} is in use")
        elif len(self._routes) >= self._max_open:
            refusal = ("overloaded", f"{self._max_open} requests are open already")
        if refusal is not None:
            code, text = refusal
            self._send(peer, RequestFailed(request_id=message.request_id, code=code, message=text))
            return
        # Two gateways may use the same id, and sort order decides between equals: so requests are numbered.
        key = f"{next(self._numbers):016}"
        self._routes[key] = route
        self._keys[route] = key
        self._worker.put(received(replace(message, request_id=key)))

    def _publish(self) -> None:
        outputs = self._worker.outbox.take_all()
        if outputs:
            with self._tracer.span("answer", tokens=len(outputs)):
                self._carry(outputs)

    def _carry(self, outputs: list[Output]) -> None:
        for output in outputs:
            if isinstance(output, EngineStatus):
                for peer in tuple(self._peers):
                    self._send(peer, output)
            else:
                self._answer(output)

    def _say_goodbye(self) -> None:
        """Send what is left. Closing drops what a gateway has not read yet, so it gets a moment to read."""
        self._publish()
        if self._peers:
            time.sleep(GOODBYE_S)

    def _answer(self, event: TokenBatch | RequestFailed) -> None:
        key = event.request_id
        route = self._routes.get(key)
        if route is None:
            return
        if isinstance(event, RequestFailed) or event.finish_reason is not None:
            self._close(key)
        self._send(route.peer, replace(event, request_id=route.request_id))

    def _send(self, peer: bytes, message: EngineToGateway) -> None:
        if not self._server.send(peer, message):
            self._forget(peer)

    def _remember(self, peer: bytes) -> None:
        self._peers.pop(peer, None)
        self._peers[peer] = None
        if len(self._peers) > MAX_PEERS:
            del self._peers[next(iter(self._peers))]

    def _forget(self, peer: bytes) -> None:
        """A gateway is gone, or does not read: nobody wants its answers."""
        self._peers.pop(peer, None)
        lost = [key for key, route in self._routes.items() if route.peer == peer]
        if lost:
            _log.warning("a gateway went away, its requests are aborted", requests=len(lost))
        for key in lost:
            self._abort(key)
            self._close(key)

    def _abort(self, key: str) -> None:
        """Once per request, so that no gateway can fill the worker's inbox."""
        if key not in self._aborted:
            self._aborted.add(key)
            self._worker.put(AbortCommand(key))

    def _close(self, key: str) -> None:
        del self._keys[self._routes.pop(key)]
        self._aborted.discard(key)

    def _stats(self) -> EngineStats:
        engine = self._worker.engine
        stats = EngineStats(counters={}, gauges={}) if engine is None else engine.stats()
        tokens = add_counts(stats.expert_tokens, self._link.expert_tokens())
        instance = self._worker.status.instance
        return replace(stats, experts=self._link.stats(), expert_tokens=tokens, instance=instance)


def _why_not(status: EngineStatus) -> str:
    """Why an engine that is not ready takes no request."""
    if status.state == "loading":
        return f"the engine is loading ({status.detail}, {status.progress:.0%})"
    return EXPERTS_AWAY if status.state == "degraded" else status.detail
