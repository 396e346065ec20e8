"""The gateway's connection to an attention service, shared by all requests.

The engine may start later than the gateway, restart under it or hang: waiting requests then fail with a
`PeerError`, and the gateway lives on.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import msgspec
from trimaran.channel import AsyncClient, Malformed
from trimaran.errors import OverloadedError, PeerError, RequestError, TrimaranError
from trimaran.telemetry import Log
from trimaran.wire import (
    Abort,
    EngineStats,
    EngineStatsRequest,
    EngineStatus,
    EngineStatusRequest,
    EngineToGateway,
    GatewayToEngine,
    Generate,
    RequestFailed,
    TokenBatch,
)

from trimaran_gateway.engine.interface import READY_STATES
from trimaran_gateway.engine.ledger import EngineLedger
from trimaran_gateway.engine.stream import EngineStream

POLL_S = 1.0
SLOW_S = 5.0
SILENCE_S = 60.0
STATS_TIMEOUT_S = 2.0

_log = Log(__name__)


class InternalEngineError(TrimaranError):
    """The engine met a failure of its own."""


class EngineClient:
    """Sends requests, delivers answers by request id, and keeps watch over the engine.

    Args:
        endpoint: where the attention service listens.
        poll_s: how often its status is asked for; a lost connection is noticed as fast.
        slow_s: how long a connected engine may leave questions unanswered before it counts as slow.
        silence_s: how long before it counts as gone, as one that is not connected does.

    Attributes:
        ledger: what the engine counted, over restarts.
        late_tokens: those that came for requests that were aborted or given up before.
    """

    def __init__(
        self, endpoint: str, *, poll_s: float = POLL_S, slow_s: float = SLOW_S, silence_s: float = SILENCE_S
    ) -> None:
        self.ledger = EngineLedger()
        self.late_tokens = 0
        self._endpoint = endpoint
        self._poll_s = poll_s
        self._slow_s = slow_s
        self._silence_s = silence_s
        self._status: EngineStatus | None = None
        self._streams: dict[str, EngineStream] = {}
        self._stats_arrived = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        # Polls, not time: what the gateway slept through itself, stopped or starved, is nobody's silence.
        self._unanswered = 0
        self._status_changed = asyncio.Event()

    async def start(self) -> None:
        """Connect; returns at once, whether or not an engine is there."""
        self._channel: AsyncClient[EngineToGateway, GatewayToEngine] = AsyncClient(
            self._endpoint, EngineToGateway
        )
        self._tasks = [asyncio.create_task(self._receive()), asyncio.create_task(self._watch())]

    async def close(self) -> None:
        """Abort what runs and disconnect."""
        await self.give_up("the gateway is shutting down")
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._channel.close()

    async def give_up(self, reason: str) -> None:
        """Abort what runs: each request fails with `reason`."""
        await self._abort_all()
        self._fail_all(PeerError(reason))

    @property
    def status(self) -> EngineStatus | None:
        """What the engine last said; None while it is gone. One that is slow is `degraded`."""
        if self._status is None or self._status.state != "ready" or self.silence_s <= self._slow_s:
            return self._status
        detail = f"slow, it has said nothing for {self.silence_s:.0f} s"
        return msgspec.structs.replace(self._status, state="degraded", detail=detail)

    @property
    def silence_s(self) -> float:
        """How long nothing was heard of the engine, while the gateway asked."""
        return self._unanswered * self._poll_s

    @property
    def is_ready(self) -> bool:
        """Whether requests are accepted now."""
        return self._status is not None and self._status.state in READY_STATES

    @property
    def in_flight(self) -> int:
        """Requests that are not answered in full yet."""
        return len(self._streams)

    async def wait_ready(self, timeout_s: float) -> bool:
        """Wait until the engine accepts requests; False after `timeout_s`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not self.is_ready:
                    self._status_changed.clear()
                    await self._status_changed.wait()
        return self.is_ready

    @contextlib.asynccontextmanager
    async def generate(self, message: Generate) -> AsyncIterator[EngineStream]:
        """Start a request; leaving the context before its last batch aborts it.

        Raises:
            PeerError: no engine is there, or it went away.
            RequestError, OverloadedError, InternalEngineError: (while iterating) the engine's refusal.
        """
        self._require_ready()
        stream = EngineStream(message.request_id)
        self._streams[message.request_id] = stream
        try:
            if not await self._channel.send(message):
                raise PeerError("the engine is not there or takes no more requests")
            yield stream
        finally:
            self._streams.pop(message.request_id, None)
            if not stream.is_over:
                await self._abort(stream)

    async def refresh(self) -> bool:
        """Bring the ledger up to date. False: the engine did not answer in time, the ledger is as it was."""
        if self._status is None or not await self._channel.send(EngineStatsRequest()):
            return False
        self._stats_arrived.clear()
        try:
            async with asyncio.timeout(STATS_TIMEOUT_S):
                await self._stats_arrived.wait()
        except TimeoutError:
            return False
        return True

    def _require_ready(self) -> None:
        if self.is_ready:
            return
        if self._status is None:
            raise PeerError("the engine is not running")
        raise PeerError(f"the engine is {self._status.state}")

    async def _abort(self, stream: EngineStream) -> None:
        await self._channel.send(Abort(request_id=stream.request_id))

    # --- receiving ---

    async def _receive(self) -> None:
        while True:
            event = await self._channel.recv()
            if event is None:
                continue
            if isinstance(event, Malformed):
                _log.warning("a message from the engine cannot be read", reason=event.reason)
                continue
            self._unanswered = 0
            await self._dispatch(event.message)

    async def _dispatch(self, message: EngineToGateway) -> None:
        match message:
            case TokenBatch():
                await self._deliver(message)
            case RequestFailed():
                stream = self._streams.get(message.request_id)
                if stream is not None:
                    stream.fail(_error_of(message))
            case EngineStatus():
                self._take_status(message)
            case EngineStats():
                self.ledger.take(message)
                self._stats_arrived.set()

    async def _deliver(self, batch: TokenBatch) -> None:
        stream = self._streams.get(batch.request_id)
        if stream is None or stream.has_failed:
            self.late_tokens += len(batch.ids)
        elif not stream.put(batch):
            stream.fail(OverloadedError("the client reads its answer too slowly"))
            await self._abort(stream)

    def _take_status(self, status: EngineStatus) -> None:
        before, self._status = self._status, status
        if before is not None and _is_another(before, status):
            self._fail_all(PeerError("the engine restarted and lost this request"))
        if before is None or before.state != status.state:
            _log.info("engine", state=status.state, detail=status.detail)
        self._status_changed.set()

    # --- keeping watch ---

    async def _watch(self) -> None:
        while True:
            connected = await self._channel.send(EngineStatusRequest())
            if not connected:
                self._lose("the engine went away")
            elif self.silence_s > self._silence_s:
                await self._abort_all()
                self._lose("the engine does not answer")
            await asyncio.sleep(self._poll_s)
            self._unanswered += 1

    async def _abort_all(self) -> None:
        """A hung engine that wakes up must not compute what was given up, or asked of another."""
        for stream in list(self._streams.values()):
            await self._abort(stream)

    def _lose(self, reason: str) -> None:
        if self._status is not None:
            _log.warning(reason, endpoint=self._endpoint, waiting=len(self._streams))
            self._status = None
            self._status_changed.set()
        self._fail_all(PeerError(reason))

    def _fail_all(self, error: PeerError) -> None:
        for stream in self._streams.values():
            stream.fail(error)


def _is_another(before: EngineStatus, now: EngineStatus) -> bool:
    """Whether a new engine speaks: another instance, or one that loads after it was ready."""
    return before.instance != now.instance or (before.state in READY_STATES and now.state == "loading")


def _error_of(failure: RequestFailed) -> TrimaranError:
    match failure.code:
        case "overloaded":
            return OverloadedError(failure.message)
        case "unavailable":
            return PeerError(failure.message)
        case "internal":
            return InternalEngineError(failure.message)
        case _:
            return RequestError(failure.message, code=failure.code, param=failure.param)
