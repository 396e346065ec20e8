"""One shard's link: hello, heartbeats, loss and reconnection, over a control channel.

Every message passes through `pump`, which the engine calls while it waits and a keeper thread otherwise, one
at a time. A link that is lost (the process is gone, silent, or too slow) fails the calls in flight, throws
its arena away, and says hello anew with a fresh one.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from trimaran.arena import ArenaDims
from trimaran.channel import ChannelOptions, Client, Malformed
from trimaran.config import Notifier
from trimaran.errors import PeerError, PeerMismatchError
from trimaran.fingerprint import explain_mismatch
from trimaran.telemetry import Log
from trimaran.wire import (
    HEARTBEAT_S,
    PROTOCOL_VERSION,
    SILENCE_S,
    UNKNOWN_CLIENT,
    Borrowed,
    Done,
    Drain,
    EngineToExperts,
    ExpertStats,
    ExpertStatsRequest,
    ExpertsToEngine,
    Heartbeat,
    Hello,
    Loading,
    Ready,
    Refused,
    Submit,
)

from trimaran_attn.experts_client.coverage import Slice
from trimaran_attn.experts_client.transports import (
    Answer,
    DoorbellTransport,
    SharedArena,
    Transport,
    make_transport,
)

RETRY_S = 0.5
REFUSED_RETRY_S = 5.0
_log = Log(__name__)


@dataclass(frozen=True)
class ModelFacts:
    """What this process loaded, for the hello.

    Attributes:
        fingerprint: of `trimaran.fingerprint`. layers: indices of the MoE layers.
    """

    fingerprint: str
    hidden_size: int
    top_k: int
    n_experts: int
    layers: tuple[int, ...]


class LinkState(Enum):
    """Where a link is: nobody answers; the shard reads its weights; it serves; it refused our hello."""

    CONNECTING = "connecting"
    LOADING = "loading"
    READY = "ready"
    REFUSED = "refused"


@dataclass(frozen=True)
class ShardStatus:
    """A link as people see it. `progress` is 0 to 1; `detail` is one line."""

    endpoint: str
    state: LinkState
    detail: str
    progress: float


@dataclass(frozen=True)
class LinkOptions:
    """How to talk to every shard. The first `device_slots` of the arena's slots belong to a GPU."""

    notifier: Notifier
    dims: ArenaDims
    run_dir: Path
    channel: ChannelOptions
    device_slots: int = 0


class ShardLink:
    """The connection to one shard. Any thread may call.

    Attributes:
        lock: held by whoever needs the session to stay what it is.
        transport: of the session, ready or not; None between sessions.
        part: what the shard owns, now or when it was last there; None before it was.
        stats: the latest, also of a shard that is away; None before the first.
    """

    def __init__(self, endpoint: str, facts: ModelFacts, options: LinkOptions) -> None:
        self.endpoint = endpoint
        self.state = LinkState.CONNECTING
        self.ready: Ready | None = None
        self.stats: ExpertStats | None = None
        self._books: Callable[[], Borrowed] | None = None
        self._facts = facts
        self._options = options
        self.lock = threading.RLock()
        self._channel: Client[ExpertsToEngine, EngineToExperts] = Client(
            endpoint, ExpertsToEngine, options.channel
        )
        self.transport: Transport | None = None
        self._detail = "no expert service there yet"
        self._refusal: PeerError | None = None
        self.part: Slice | None = None  # of the first welcome, which sums rely on ever after
        self._progress = 0.0
        self._next_beat = 0.0
        self._last_heard = 0.0
        self._done: dict[tuple[int, int], Answer] = {}

    def status(self) -> ShardStatus:
        """How the link is now."""
        with self.lock:
            return ShardStatus(self.endpoint, self.state, self._detail, self._progress)

    def require_transport(self) -> Transport:
        """The session's transport; raises PeerError unless the link is ready."""
        transport = self.transport
        if self.state is not LinkState.READY or transport is None:
            raise self.lost_error("is not ready")
        return transport

    def lost_error(self, what: str = "") -> PeerError:
        """For calls of a session that is over, or not begun: how the link is."""
        return PeerError(f"expert service {self.endpoint}{what and ' ' + what}: {self._detail}")

    def shared_arena(self) -> SharedArena:
        """The session's arena; another one after each loss of the shard.

        Raises:
            PeerError: the shard is not ready, or the notifier is not the doorbell.
        """
        transport = self.require_transport()
        if not isinstance(transport, DoorbellTransport):
            raise PeerError(f"expert service {self.endpoint}: a GPU needs the notifier doorbell")
        return transport.shared

    def send(self, message: Submit, frames: Sequence[memoryview] = ()) -> None:
        """Send a call (for transports by message)."""
        with self.lock:
            if not self._channel.send(message, frames):
                self.lose("went away")
                raise self.lost_error()

    def take_done(self, slot: int, sequence: int, timeout_s: float) -> Answer | None:
        """The answer to a call (for transports by message)."""
        with self.lock:  # held from the look to the wait, or the keeper might take the answer in between
            if (slot, sequence) not in self._done:
                self.pump(timeout_s)
            return self._done.pop((slot, sequence), None)

    def pump(self, timeout_s: float) -> None:
        """Handle messages, waiting up to `timeout_s` for the first; send what is due; notice a lost peer."""
        with self.lock:
            self._channel.poll(timeout_s)
            for event in self._channel.recv_all():
                self._last_heard = time.monotonic()
                if isinstance(event, Malformed):
                    _log.warning("malformed message", endpoint=self.endpoint, reason=event.reason)
                else:
                    self._handle(event.message, event.frames)
            self._look(time.monotonic())

    def lose(self, reason: str) -> None:
        """Give the session up: calls in flight fail, and a new hello follows."""
        with self.lock:
            if self.state is LinkState.READY:
                _log.warning("lost an expert service", endpoint=self.endpoint, reason=reason)
            self._forget(LinkState.CONNECTING, reason)

    def borrow(self, books: Callable[[], Borrowed]) -> None:
        """From now on the shard hears with every heartbeat what is computed here from its weights."""
        with self.lock:
            self._books = books
            self._next_beat = 0.0
            self.pump(0)

    def refusal_error(self) -> PeerError:
        """Why the state is REFUSED: a PeerMismatchError if the two sides differ."""
        assert self._refusal is not None
        return self._refusal

    def close(self) -> None:
        """Say goodbye. May be called twice."""
        with self.lock:
            if self.state is LinkState.READY:
                self._channel.send(Drain())
            self._forget(LinkState.CONNECTING, "closed")
            self._channel.close()

    def _handle(self, message: ExpertsToEngine, frames: tuple[memoryview, ...]) -> None:
        if isinstance(message, Done):
            self._done[(message.slot, message.sequence)] = (message, frames)
        elif isinstance(message, Ready):
            self._welcome(message)
        elif isinstance(message, Loading):
            self.state, self._progress = LinkState.LOADING, message.progress
            self._detail = f"reading weights, {message.progress:.0%}"
        elif isinstance(message, Refused):
            if message.reason == UNKNOWN_CLIENT:
                self.lose("restarted")
            else:
                self._refuse(_refusal_error(self.endpoint, message), message.reason)
        elif isinstance(message, ExpertStats):
            self.stats = message

    def _welcome(self, ready: Ready) -> None:
        if self.transport is None or self.state is LinkState.READY:
            return
        now = Slice.of(ready)
        self.part = self.part or now
        if now != self.part:
            self._refuse(_other_slice(self.endpoint, now, self.part), "came back with other experts")
            return
        self.state, self.ready, self._progress, self._detail = LinkState.READY, ready, 1.0, "ready"
        _log.info("expert service is ready", endpoint=self.endpoint, shard=ready.shard, isa=ready.isa)

    def _refuse(self, error: PeerError, detail: str) -> None:
        self._refusal = error
        self._forget(LinkState.REFUSED, detail)

    def _look(self, now: float) -> None:
        connected = self._channel.connected
        if self.state in (LinkState.READY, LinkState.LOADING):
            if not connected:
                self.lose("went away")
            elif now - self._last_heard > SILENCE_S:
                self.lose(f"silent for {SILENCE_S:.0f} s")
        if now < self._next_beat or not connected:
            return
        if self.state is LinkState.READY:
            self._next_beat = now + HEARTBEAT_S
            self._channel.send(Heartbeat(sent_ns=time.time_ns()))
            if self._books is not None:
                self._channel.send(self._books())
            self._channel.send(ExpertStatsRequest())
        else:
            self._next_beat = now + (REFUSED_RETRY_S if self.state is LinkState.REFUSED else RETRY_S)
            self._say_hello()

    def _say_hello(self) -> None:
        options, facts = self._options, self._facts
        if self.transport is None:
            self.transport = make_transport(
                options.notifier, options.dims, options.run_dir, self, options.device_slots
            )
        hello = Hello(
            protocol=PROTOCOL_VERSION,
            model_fingerprint=facts.fingerprint,
            hidden_size=facts.hidden_size,
            top_k=facts.top_k,
            n_experts=facts.n_experts,
            layers=facts.layers,
            dtype=options.dims.dtype,
            notifier=options.notifier,
            arena=self.transport.arena_path,
            client=f"pid {os.getpid()}",
        )
        self._channel.send(hello)

    def _forget(self, state: LinkState, detail: str) -> None:
        transport, self.transport = self.transport, None
        if transport is not None:
            transport.close()
        self._done.clear()
        self.state, self.ready, self._progress, self._detail = state, None, 0.0, detail


def _refusal_error(endpoint: str, refusal: Refused) -> PeerError:
    text = f"expert service {endpoint} refused us: {refusal.reason}"
    if not refusal.differences:
        return PeerError(text)
    differences = "; ".join(_explain(difference) for difference in refusal.differences)
    remedy = "start both with the same model file and version"
    return PeerMismatchError(f"{text}: {differences}", remedy=remedy)


def _other_slice(endpoint: str, now: Slice, before: Slice) -> PeerMismatchError:
    """A shard came back with another part of the experts."""
    return PeerMismatchError(
        f"expert service {endpoint} owns {now}, but had {before}",
        remedy="start it with the same experts.experts and columns, or start the attention service anew",
    )


def _explain(difference: str) -> str:
    """A fingerprint's difference in words; any other as it is."""
    name, _, values = difference.partition(": ours ")
    theirs, separator, ours = values.partition(", yours ")
    if name != "model_fingerprint" or not separator:
        return difference
    return f"model: {explain_mismatch(ours, theirs)} ({difference})"
