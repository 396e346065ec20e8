"""Records the timeline of a running server, by asking its services over their sockets."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
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
_REPLICA = re.compile(r"attn-(\d+)\.sock")

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
    found = [path for path in sorted(base.glob("trimaran-*")) if any(map(_answers, _engines(path).values()))]
    if len(found) == 1:
        return found[0]
    if not found:
        raise ConfigError(f"no server runs in {base}", remedy="name its run directory by --run-dir")
    listed = ", ".join(map(str, found))
    raise ConfigError(f"several servers run: {listed}", remedy="choose one by --run-dir")


def record(
    run_dir: Path, seconds: float, steps: int | None = None, replica: int | None = None
) -> tuple[Spans, list[str]]:
    """Spans by process, of the attention services and of the expert services in the same run directory.

    Args:
        run_dir: the server's.
        seconds: how long to record.
        steps: how many steps of each attention service to record at most; None: as many as there are.
        replica: the only attention service to record; None: all that answer.

    Returns:
        The spans, and the attention services that were left out since they did not answer, or stopped to.

    Raises:
        PeerError: no attention service answers, or not the one that is wanted.
    """
    since_ns = time.monotonic_ns()
    endpoints = _engines(run_dir) or {0: attn_endpoint(run_dir)}
    name = "attention service" if replica is None and list(endpoints) == [0] else "attention service {}"
    if replica is not None:
        endpoints = {replica: attn_endpoint(run_dir, replica)}
    found, failed = _record_engines(endpoints, seconds, steps)
    processes = {name.format(number): spans for number, spans in found.items()}
    for path in sorted(run_dir.glob("experts-*.sock")):
        answer = _ask_experts(f"ipc://{path}", since_ns)
        processes[f"expert service {answer.shard}"] = answer.spans
    return processes, [name.format(number) for number in failed]


def _engines(run_dir: Path) -> dict[int, str]:
    """Endpoints of the attention services that have sockets there, by number."""
    names = {path.name for path in run_dir.glob("attn*.sock")}
    numbers = [0, *sorted(int(found[1]) for found in map(_REPLICA.fullmatch, names) if found)]
    endpoints = {number: attn_endpoint(run_dir, number) for number in numbers}
    return {number: end for number, end in endpoints.items() if end.rpartition("/")[2] in names}


class _Recording:
    """The recording of one attention service."""

    def __init__(self, endpoint: str, steps: int | None) -> None:
        self._endpoint = endpoint
        self._client = _connect(endpoint, EngineToGateway)
        _send(self._client, StartTrace(steps=steps), endpoint)

    @property
    def is_active(self) -> bool:
        """Whether it goes on."""
        return _ask(self._client, TraceRequest(), EngineTrace, self._endpoint).active

    def take(self) -> list[TraceSpan]:
        """End it."""
        return _ask(self._client, TraceRequest(take=True), EngineTrace, self._endpoint).spans

    def close(self) -> None:
        """Disconnect. May be called twice."""
        self._client.close()


def _record_engines(
    endpoints: Mapping[int, str], seconds: float, steps: int | None
) -> tuple[dict[int, list[TraceSpan]], list[int]]:
    """Spans by number, and the numbers that failed. All record at the same time, whoever of them fails.

    Raises:
        PeerError: all fail; the first one's failure.
    """
    with ExitStack() as stack:
        watch = _Watch()
        recordings: dict[int, _Recording] = {}
        for number, endpoint in endpoints.items():
            with watch.over(number):
                recordings[number] = _Recording(endpoint, steps)
                stack.callback(recordings[number].close)
        end = time.monotonic() + seconds
        while time.monotonic() < end and _any_active(recordings, watch):
            time.sleep(min(LOOK_S, max(0.0, end - time.monotonic())))
        spans: dict[int, list[TraceSpan]] = {}
        for number in watch.well(recordings):
            with watch.over(number):
                spans[number] = recordings[number].take()
    if not spans:
        raise next(iter(watch.failures.values()))
    return spans, list(watch.failures)


def _any_active(recordings: Mapping[int, _Recording], watch: _Watch) -> bool:
    active = False
    for number in watch.well(recordings):
        with watch.over(number):
            active |= recordings[number].is_active
    return active


class _Watch:
    """Remembers which of several fail.

    Attributes:
        failures: by number.
    """

    def __init__(self) -> None:
        self.failures: dict[int, PeerError] = {}

    @contextmanager
    def over(self, number: int) -> Iterator[None]:
        """A failure in the block is that of `number`."""
        try:
            yield
        except PeerError as error:
            self.failures[number] = error

    def well(self, numbers: Iterable[int]) -> list[int]:
        """Those that have not failed."""
        return [number for number in numbers if number not in self.failures]


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


def _answers(endpoint: str) -> bool:
    try:
        client: Client[EngineToGateway, GatewayToEngine] = _connect(endpoint, EngineToGateway)
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
