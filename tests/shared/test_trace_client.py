"""Recording attention services that speak the real protocol, each in a thread."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from trimaran import trace_client
from trimaran.channel import Received, Server
from trimaran.errors import ConfigError, PeerError
from trimaran.run_dir import attn_endpoint
from trimaran.trace_client import find_run_dir, record
from trimaran.wire import (
    EngineToGateway,
    EngineTrace,
    GatewayToEngine,
    StartTrace,
    TraceRequest,
    TraceSpan,
)


class FakeEngine:
    """Records one span per step that was asked for; `is_mute` ones start, but never answer."""

    def __init__(self, run_dir: Path, number: int, *, is_mute: bool = False) -> None:
        self.started: list[int | None] = []
        self._number = number
        self._is_mute = is_mute
        self._is_over = threading.Event()
        self._server: Server[GatewayToEngine, EngineToGateway] = Server(
            attn_endpoint(run_dir, number), GatewayToEngine
        )
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._is_over.set()
        self._thread.join()
        self._server.close()

    def _serve(self) -> None:
        while not self._is_over.is_set():
            self._server.poll(0.02)
            for event in self._server.recv_all():
                assert isinstance(event, Received)
                self._answer(event)

    def _answer(self, event: Received[GatewayToEngine]) -> None:
        match event.message:
            case StartTrace(steps=steps):
                self.started.append(steps)
            case TraceRequest(take=take) if not self._is_mute:
                span = TraceSpan("engine", "step", 1000 * self._number, 1000 * self._number + 5)
                self._server.send(event.peer, EngineTrace(active=False, spans=[span] if take else []))


@contextlib.contextmanager
def engines(run_dir: Path, *numbers: int, mute: int | None = None) -> Iterator[list[FakeEngine]]:
    made = [FakeEngine(run_dir, number, is_mute=number == mute) for number in numbers]
    try:
        yield made
    finally:
        for engine in made:
            engine.close()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever does not answer is given up soon."""
    monkeypatch.setattr(trace_client, "ANSWER_S", 0.5)
    monkeypatch.setattr(trace_client, "_CONNECT_S", 0.5)


def test_all_are_recorded_side_by_side(tmp_path: Path) -> None:
    with engines(tmp_path, 0, 1, 10) as made:
        spans, silent = record(tmp_path, seconds=30, steps=4)
        assert [engine.started for engine in made] == [[4], [4], [4]]
    assert {name: [span.start_ns for span in found] for name, found in spans.items()} == {
        "attention service 0": [0],
        "attention service 1": [1000],
        "attention service 10": [10000],
    }
    assert list(spans) == [f"attention service {number}" for number in (0, 1, 10)]
    assert silent == []


def test_one_of_several_can_be_chosen(tmp_path: Path) -> None:
    with engines(tmp_path, 0, 1) as (first, second):
        spans, _ = record(tmp_path, seconds=30, replica=1)
        assert (first.started, second.started) == ([], [None])
    assert list(spans) == ["attention service 1"]


def test_the_only_one_needs_no_number(tmp_path: Path) -> None:
    with engines(tmp_path, 0):
        assert list(record(tmp_path, seconds=30)[0]) == ["attention service"]


@pytest.mark.usefixtures("hasty")
def test_those_that_do_not_answer_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "attn-2.sock").touch()  # left behind by one that was killed
    with engines(tmp_path, 0, 1, mute=0):
        spans, silent = record(tmp_path, seconds=30)
        assert list(spans) == ["attention service 1"]
        assert sorted(silent) == ["attention service 0", "attention service 2"]
        with pytest.raises(PeerError, match=r"attn\.sock did not answer within"):
            record(tmp_path, seconds=30, replica=0)
        with pytest.raises(PeerError, match=r"nobody answers at .*attn-7\.sock"):
            record(tmp_path, seconds=30, replica=7)


@pytest.mark.usefixtures("hasty")
def test_a_server_is_found_by_any_of_its_services(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"trimaran-{name}").mkdir()
    with pytest.raises(ConfigError, match="no server runs"):
        find_run_dir(tmp_path)
    (tmp_path / "trimaran-a" / "attn.sock").touch()
    with engines(tmp_path / "trimaran-a", 1):
        assert find_run_dir(tmp_path) == tmp_path / "trimaran-a"
        with engines(tmp_path / "trimaran-b", 0), pytest.raises(ConfigError, match="several servers run"):
            find_run_dir(tmp_path)
