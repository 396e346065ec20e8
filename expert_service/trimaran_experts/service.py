"""The control loop of the expert service: hellos, heartbeats, calls by message, statistics, goodbyes.

Calls by doorbell never pass here: each such client has a native thread of its own.
"""

from __future__ import annotations

import time
from functools import partial

from trimaran.channel import Malformed, Received, Server
from trimaran.lifecycle import Stop
from trimaran.telemetry import Log
from trimaran.wire import (
    HEARTBEAT_S,
    UNKNOWN_CLIENT,
    Borrowed,
    Done,
    Drain,
    EngineToExperts,
    ExpertStats,
    ExpertStatsRequest,
    ExpertsToEngine,
    ExpertTrace,
    ExpertTraceRequest,
    Heartbeat,
    Hello,
    Loading,
    Ready,
    Record,
    Recorded,
    Refused,
    Status,
    Submit,
    TraceSpan,
)

from trimaran_experts.books import Books
from trimaran_experts.call_runner import CallRunner, FinishedCall, guarded
from trimaran_experts.clients import Clients, ModelFacts
from trimaran_experts.compute_times import compute_times, time_bounds
from trimaran_experts.engine import ShardEngine
from trimaran_experts.lending import lend
from trimaran_experts.loading import LoadingThread
from trimaran_experts.placement import Placement
from trimaran_experts.routing import load_imbalance, own_tokens
from trimaran_experts.tap import Tap

ControlServer = Server[EngineToExperts, ExpertsToEngine]
QUICK_TOKENS = 4
_log = Log(__name__)


class ExpertService:
    """Serves one shard on `server` until told to stop.

    Args:
        loading: reads the weights and makes the engine meanwhile.
    """

    def __init__(
        self, server: ControlServer, facts: ModelFacts, placement: Placement, loading: LoadingThread
    ) -> None:
        self._server = server
        self._placement = placement
        self._loading = loading
        self._engine: ShardEngine | None = None
        self._clients = Clients(facts)
        self._books = Books(facts.layers, facts.n_experts)
        self._runner = CallRunner()
        self._tap = Tap(facts.fingerprint)
        self._next_beat = 0.0
        self._malformed = 0

    def run(self, stop: Stop) -> None:
        """Serve until `stop` is requested.

        Raises:
            TrimaranError: loading failed.
        """
        wakers = (stop.fileno(), self._runner.fileno(), self._loading.fileno())
        while not stop.requested:
            self._server.poll(max(0.0, self._next_beat - time.monotonic()), wakers)
            if self._engine is None and self._loading.finished and (engine := self._loading.result()):
                self._begin_serving(engine)
            self._handle_messages()
            self._send_finished()
            self._tick()

    def close(self) -> None:
        """Say goodbye to every client: what they asked and did not get is answered SHUTTING_DOWN."""
        self._clients.drop_all("the service stops")
        self._runner.close()
        while any(not session.finished for session in self._clients.leaving):
            time.sleep(0.005)

    def stats(self) -> ExpertStats:
        """Counters since the start, those of borrowers included, under the names of the exported metrics."""
        counts = self._books.total(self._engine.gate if self._engine else None)
        counters, routed = counts.counters, {layer: list(row) for layer, row in counts.routed.items()}
        return ExpertStats(
            shard=self._placement.shard,
            counters={
                "expert_calls_total": float(counters.get("calls", 0)),
                "expert_failures_total": float(counters.get("failures", 0)),
                "expert_tokens_total": float(counters.get("tokens", 0)),
                "expert_engine_calls_total": float(counters.get("engine_calls", 0)),
                "expert_merged_calls_total": float(counters.get("merged_calls", 0)),
                "expert_bytes_read_total": float(counters.get("bytes_read", 0)),
                "expert_compute_seconds_total": counters.get("busy_ns", 0) / 1e9,
                "expert_malformed_messages_total": float(self._malformed),
                **compute_times(counters),
            },
            gauges={
                "expert_queue_depth": float(counters.get("waiting", 0) + self._runner.waiting),
                "expert_clients": float(len(self._clients.by_peer)),
                "expert_load_progress": self._loading.report.fraction,
                "expert_load_bytes_per_second": self._loading.report.bytes_per_s,
                "expert_load_eta_seconds": self._loading.report.eta_s,
                "expert_threads": float(len(self._placement.cpus)),
                "expert_load_imbalance_ratio": load_imbalance(routed, self._placement.experts),
            },
            expert_tokens=own_tokens(routed, self._placement.experts),
            layer_times={layer: list(row) for layer, row in counts.latencies.items()},
            time_bounds_ns=time_bounds(counters),
        )

    def _trace(self, since_ns: int) -> ExpertTrace:
        calls = self._engine.gate.calls_since(since_ns) if self._engine else []
        spans = [
            TraceSpan("compute", "experts", start_ns, end_ns, layer, tokens)
            for layer, tokens, start_ns, end_ns in calls
        ]
        return ExpertTrace(shard=self._placement.shard, spans=spans)

    def _record(self, message: Record) -> Recorded:
        if not self._server.endpoint.startswith("ipc://"):
            return Recorded(error="recordings are made on the service's own host, by its ipc:// endpoint")
        if self._engine is None:
            return Recorded(error="weights are still being read")
        if self._clients.borrow:
            return Recorded(
                error="an attention service computes from these weights itself; start it with"
                " attn.experts=service to record its calls"
            )
        return self._tap.handle(message, self._engine.gate)

    def _begin_serving(self, engine: ShardEngine) -> None:
        self._engine = engine
        for peer in list(self._clients.by_peer):
            self._welcome(peer)
        first, end = self._placement.experts
        _log.info(
            "ready",
            endpoint=self._server.endpoint,
            shard=self._placement.shard,
            experts=f"{first}-{end - 1}",
            isa=engine.isa,
            threads=len(engine.cpus),
        )

    def _handle_messages(self) -> None:
        for event in self._server.recv_all():
            if isinstance(event, Malformed):
                self._malformed += 1
                _log.warning("malformed message", reason=event.reason)
            else:
                self._handle(event)

    def _handle(self, event: Received[EngineToExperts]) -> None:
        peer, message = event.peer, event.message
        if isinstance(message, Hello):
            self._greet(peer, message)
        elif isinstance(message, Record):
            self._send(peer, self._record(message))
        elif isinstance(message, ExpertStatsRequest):
            self._send(peer, self.stats())
        elif isinstance(message, ExpertTraceRequest):
            self._send(peer, self._trace(message.since_ns))
        elif peer not in self._clients.by_peer and not isinstance(message, Drain):
            self._server.send(peer, Refused(reason=UNKNOWN_CLIENT))
        elif isinstance(message, Borrowed):
            self._note(peer, message)
        elif isinstance(message, Submit):
            self._accept(peer, message, event.frames)
        elif isinstance(message, Drain):
            self._clients.drop(peer, "says goodbye")
        if client := self._clients.by_peer.get(peer):
            client.last_heard = time.monotonic()

    def _greet(self, peer: bytes, hello: Hello) -> None:
        refusal = self._clients.admit(peer, hello, time.monotonic())
        if refusal is not None:
            _log.warning("client refused", reason=refusal.reason, differences="; ".join(refusal.differences))
            self._server.send(peer, refusal)
        elif self._engine is None:
            self._send(peer, Loading(progress=self._loading.report.fraction))
        else:
            self._welcome(peer)

    def _welcome(self, peer: bytes) -> None:
        assert self._engine is not None
        refusal = self._clients.open(peer, self._engine)
        if refusal is not None:
            _log.warning("client refused", reason=refusal.reason)
            self._server.send(peer, refusal)
            return
        placement = self._placement
        shares_memory = self._clients.by_peer[peer].hello.notifier != "tcp"
        ready = Ready(
            shard=placement.shard,
            isa=self._engine.isa,
            experts=placement.experts,
            columns=placement.columns,
            n_columns=self._clients.facts.n_columns,
            threads=len(self._engine.cpus),
            lent=lend(self._engine) if shares_memory else None,
        )
        self._send(peer, ready)

    def _note(self, peer: bytes, message: Borrowed) -> None:
        if self._engine is None or not self._books.note(message, self._engine.gate):
            self._malformed += 1
            return
        self._clients.by_peer[peer].borrows = True

    def _accept(self, peer: bytes, submit: Submit, frames: tuple[memoryview, ...]) -> None:
        session = self._clients.by_peer[peer].session
        if session is None:
            self._send(peer, _done(submit, Status.INTERNAL, "weights are still being read"))
            return
        compute = partial(session.compute, submit, frames)
        if self._is_quick(submit):
            self._answer(FinishedCall(peer, submit, guarded(compute)))
        elif not self._runner.submit(peer, submit, compute):
            self._send(peer, _done(submit, Status.INTERNAL, "too many calls wait"))

    def _is_quick(self, submit: Submit) -> bool:
        """Whether a call may run in the control loop, which saves handing it to a thread and back.

        A few tokens take milliseconds, if the engine is free: no heartbeat is missed.
        """
        assert self._engine is not None
        is_free = self._runner.waiting == 0 and self._engine.gate.counters()["waiting"] == 0
        return is_free and submit.n_tokens <= QUICK_TOKENS

    def _send_finished(self) -> None:
        for call in self._runner.take_finished():
            self._answer(call)

    def _answer(self, call: FinishedCall) -> None:
        self._server.send(call.peer, _done(call.submit, call.answer.status), call.answer.frames)

    def _tick(self) -> None:
        now = time.monotonic()
        if now < self._next_beat:
            return
        self._next_beat = now + HEARTBEAT_S
        self._clients.drop_silent(now)
        if self._engine is not None:
            self._tap.drop_forgotten(now, self._engine.gate)
        loading = self._engine is None
        message = (
            Loading(progress=self._loading.report.fraction) if loading else Heartbeat(sent_ns=time.time_ns())
        )
        for peer in list(self._clients.by_peer):
            self._send(peer, message)

    def _send(self, peer: bytes, message: ExpertsToEngine) -> None:
        if not self._server.send(peer, message):
            self._clients.drop(peer, "went away")


def _done(submit: Submit, status: int, message: str = "") -> Done:
    return Done(slot=submit.slot, sequence=submit.sequence, status=status, message=message)
