"""Records the timeline of a running server, by asking its services over their sockets."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from trimaran.channel import Client, Malformed
from trimaran.errors import ConfigError, PeerError
from trimaran.run_dir import attn_endpoint, default_run_dir
from trimaran.wire import (
    EngineToExperts,
    EngineToGateway,
    EngineTrace,
    ExpertsToEngine,
    ExpertTrace,
    ExpertTraceRequest,
    GatewayToEngine,
    StartTrace,
    TraceRequest,
    TraceSpan,
)

ANSWER_S = 10.0
"""How long a service may take to answer; a step of the engine does not delay it."""

LOOK_S = 0.1
_CONNECT_S = 2.0

T = TypeVar("T", bound=msgspec.Struct)
Spans = dict[str, list[TraceSpan]]


def find_run_dir(base: Path | None = None) -> Path:
    """The run directory of the one server that runs here.

    Args:
        base: where run directories are; None: the default place.

    Raises:
        ConfigError: there is none, or there are several.
    """
    base = base or default_run_dir().parent
    found = [path.parent for path in sorted(base.glob("trimaran-*/attn.sock")) if _answers(path.parent)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise ConfigError(f"no server runs in {base}", remedy="name its run directory by --run-dir")
    listed = ", ".join(map(str, found))
    raise ConfigError(f"several servers run: {listed}", remedy="choose one by --run-dir")


def record(run_dir: Path, seconds: float, steps: int | None = None) -> Spans:
    """Spans by process, of the engine and of the expert services in the same run directory.

    Args:
        run_dir: the server's.
        seconds: how long to record.
        steps: how many steps of the engine to record at most; None: as many as there are.

    Raises:
        PeerError: the engine does not answer.
    """
    since_ns = time.monotonic_ns()
    processes: Spans = {"attention service": _record_engine(attn_endpoint(run_dir), seconds, steps)}
    for path in sorted(run_dir.glob("experts-*.sock")):
        answer = _ask_experts(f"ipc://{path}", since_ns)
        processes[f"expert service {answer.shard}"] = answer.spans
    return processes


def _record_engine(endpoint: str, seconds: float, steps: int | None) -> list[TraceSpan]:
    with _connect(endpoint, EngineToGateway) as client:
        _send(client, StartTrace(steps=steps), endpoint)
        end = time.monotonic() + seconds
        while time.monotonic() < end and _ask(client, TraceRequest(), EngineTrace, endpoint).active:
            time.sleep(min(LOOK_S, max(0.0, end - time.monotonic())))
        return _ask(client, TraceRequest(take=True), EngineTrace, endpoint).spans


def _ask_experts(endpoint: str, since_ns: int) -> ExpertTrace:
    client: Client[ExpertsToEngine, EngineToExperts]
    with _connect(endpoint, ExpertsToEngine) as client:
        return _ask(client, ExpertTraceRequest(since_ns=since_ns), ExpertTrace, endpoint)


def _connect(endpoint: str, receives: Any) -> Client[Any, Any]:
    client: Client[Any, Any] = Client(endpoint, receives)
    if not _wait_for(lambda: client.connected, client):
        client.close()
        raise PeerError(f"nobody answers at {endpoint}", remedy="is the server running?")
    return client


def _wait_for(condition: Callable[[], bool], client: Client[Any, Any]) -> bool:
    deadline = time.monotonic() + _CONNECT_S
    while not condition():
        if time.monotonic() > deadline:
            return False
        client.poll(0.02)
    return True


def _answers(run_dir: Path) -> bool:
    try:
        client: Client[EngineToGateway, GatewayToEngine] = _connect(attn_endpoint(run_dir), EngineToGateway)
    except PeerError:
        return False
    client.close()
    return True


def _send(client: Client[Any, Any], message: msgspec.Struct, endpoint: str) -> None:
    if not client.send(message):
        raise PeerError(f"{endpoint} takes no message")


def _ask(client: Client[Any, Any], message: msgspec.Struct, wanted: type[T], endpoint: str) -> T:
    """The answer of type `wanted`; others, which services also send of their own accord, are passed over."""
    _send(client, message, endpoint)
    deadline = time.monotonic() + ANSWER_S
    while (left := deadline - time.monotonic()) > 0:
        event = client.recv(left)
        if event is not None and not isinstance(event, Malformed) and isinstance(event.message, wanted):
            return event.message
    raise PeerError(f"{endpoint} did not answer within {ANSWER_S:.0f} s")
