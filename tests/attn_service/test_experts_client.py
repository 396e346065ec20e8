"""The parts of the experts client that need no service; tests/expert_service has the rest."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from trimaran.arena import arena_directory
from trimaran.channel import Malformed, Server
from trimaran.config import ExpertsConfig
from trimaran.errors import KernelError, PeerError, PeerMismatchError
from trimaran.wire import (
    UNKNOWN_CLIENT,
    Done,
    EngineToExperts,
    ExpertsToEngine,
    Heartbeat,
    Hello,
    Ready,
    Refused,
    Status,
)
from trimaran_attn.experts_client import ExpertsClient, ModelFacts, transports
from trimaran_attn.experts_client import link as link_module
from trimaran_attn.experts_client.bf16 import from_bf16, to_bf16
from trimaran_attn.experts_client.link import LinkState
from trimaran_attn.experts_client.statuses import status_error

FACTS = ModelFacts("fingerprint", hidden_size=8, top_k=2, n_experts=8, layers=(1,))


@given(st.lists(st.floats(width=32), min_size=1, max_size=50))
def test_bf16_rounds_as_torch_does(values: list[float]) -> None:
    x = np.array(values, np.float32)
    expected = torch.from_numpy(x.copy()).to(torch.bfloat16)
    ours = from_bf16(to_bf16(x))
    np.testing.assert_array_equal(ours, expected.float().numpy())


def test_bf16_keeps_nan_and_infinity() -> None:
    x = np.array([np.nan, np.inf, -np.inf, 3.4e38], np.float32)
    y = from_bf16(to_bf16(x))
    assert np.isnan(y[0])
    np.testing.assert_array_equal(y[1:], [np.inf, -np.inf, np.inf])


@pytest.mark.parametrize("status", [code for name, code in vars(Status).items() if name.isupper() and code])
def test_every_status_is_an_error_that_names_the_service(status: int) -> None:
    error = status_error(status, "ipc:///x.sock", 7)
    assert isinstance(error, PeerError if status == Status.SHUTTING_DOWN else KernelError)
    assert "ipc:///x.sock" in str(error)
    assert "unknown" not in str(error)


def test_an_unknown_status_is_an_error_too() -> None:
    assert "unknown status 99" in str(status_error(99, "ipc:///x.sock", 7))
    assert "its own words" in str(status_error(Status.INTERNAL, "ipc:///x.sock", 7, "its own words"))


class FakeShard:
    """Answers hellos with `experts`, from a thread of its own. `forget` makes it act as if restarted."""

    def __init__(self, endpoint: str, experts: tuple[int, int]) -> None:
        self.experts = experts
        self.hellos = 0
        self._peer: bytes | None = None
        self._to_send: list[ExpertsToEngine] = []
        self._stopped = threading.Event()
        self._server: Server[EngineToExperts, ExpertsToEngine] = Server(endpoint, EngineToExperts)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def forget(self, experts: tuple[int, int]) -> None:
        """Own other experts, and know no client any more."""
        self.experts = experts
        self.send(Refused(reason=UNKNOWN_CLIENT))

    def send(self, message: ExpertsToEngine) -> None:
        self._to_send.append(message)

    def close(self) -> None:
        self._stopped.set()
        self._thread.join()
        self._server.close()

    def _run(self) -> None:
        next_beat = 0.0
        while not self._stopped.is_set():
            event = self._server.recv(0.01)
            assert not isinstance(event, Malformed)
            if event is not None:
                self._peer = event.peer
            if event is not None and isinstance(event.message, Hello):
                self.hellos += 1
                self.send(
                    Ready(
                        shard="0",
                        isa="generic",
                        experts=self.experts,
                        columns=(0, 4),
                        n_columns=4,
                        threads=1,
                    )
                )
            if self._peer is not None and time.monotonic() > next_beat:
                next_beat = time.monotonic() + 1
                self.send(Heartbeat(sent_ns=0))
            while self._peer is not None and self._to_send:
                self._server.send(self._peer, self._to_send.pop(0))


@pytest.fixture
def shard(tmp_path: Path) -> Iterator[Callable[..., FakeShard]]:
    """Starts fake shards: `shard("name", (0, 8))`."""
    shards: list[FakeShard] = []

    def start(name: str, experts: tuple[int, int]) -> FakeShard:
        shards.append(FakeShard(f"ipc://{tmp_path}/{name}.sock", experts))
        return shards[-1]

    yield start
    for one in shards:
        one.close()


def make_client(folder: Path, *names: str, facts: ModelFacts = FACTS, **options: Any) -> ExpertsClient:
    endpoints = tuple(f"ipc://{folder}/{name}.sock" for name in names)
    given = {"endpoints": endpoints, "notifier": "tcp", "connect_timeout_s": 10.0, **options}
    return ExpertsClient(ExpertsConfig(**given), facts, folder)


def wait_until(condition: Callable[[], bool], timeout_s: float = 8) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_keeper_outlives_any_failure_to_reconnect(
    tmp_path: Path, shard: Callable[..., FakeShard], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = shard("a", (0, 8))
    with make_client(tmp_path, "a", notifier="doorbell") as client:
        client.connect()
        before = set(arena_directory(tmp_path).glob(f"trimaran-arena-{os.getpid()}-*"))
        failed = threading.Event()

        def fail(_path: str) -> None:
            failed.set()
            raise KernelError("cannot map the arena")

        with monkeypatch.context() as patch:
            patch.setattr(transports, "HopArena", fail)
            one.forget((0, 8))
            assert failed.wait(8)
            wait_until(lambda: not client.ready())
            arenas = f"trimaran-arena-{os.getpid()}-*"
            wait_until(lambda: not set(arena_directory(tmp_path).glob(arenas)) - before)
        wait_until(client.ready)


def test_a_shard_that_comes_back_with_other_experts_is_refused(
    tmp_path: Path, shard: Callable[..., FakeShard], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "REFUSED_RETRY_S", 1.0)
    one = shard("a", (0, 8))
    with make_client(tmp_path, "a") as client:
        client.connect()
        one.forget((0, 4))
        wait_until(lambda: client.statuses()[0].state is LinkState.REFUSED)
        (link,) = client._links
        error = link.refusal_error()
        assert isinstance(error, PeerMismatchError)
        assert "owns experts 0-3, but had experts 0-7" in str(error)
        with pytest.raises(PeerError, match="came back with other experts"):
            link.require_transport()
        one.experts = (0, 8)
        wait_until(client.ready)


def test_connect_waits_for_all_shards_at_once(tmp_path: Path, shard: Callable[..., FakeShard]) -> None:
    first = shard("a", (0, 4))
    later: list[FakeShard] = []

    def on_progress(detail: str, _progress: float) -> None:
        if "b.sock" in detail and not later:  # the first is ready: lose it, and let the second appear
            first.forget((0, 4))
            wait_until(lambda: not first._to_send)
            later.append(shard("b", (4, 8)))

    with make_client(tmp_path, "a", "b") as client:
        client.connect(on_progress)
        assert client.ready()
    assert later
    assert first.hellos == 2


def test_an_answer_that_the_keeper_took_is_not_waited_for(
    tmp_path: Path, shard: Callable[..., FakeShard]
) -> None:
    one = shard("a", (0, 8))
    with make_client(tmp_path, "a") as client:
        client.connect()
        (link,) = client._links
        taken: list[object] = []
        engine = threading.Thread(target=lambda: taken.append(link.take_done(0, 1, 5.0)))
        with link.lock:  # as the keeper, while the engine begins to wait
            engine.start()
            time.sleep(0.05)
            one.send(Done(slot=0, sequence=1, status=Status.OK))
            wait_until(lambda: link.pump(0.05) is None and (0, 1) in link._done)
        engine.join(0.5)
        assert not engine.is_alive()
        assert taken[0] is not None


def test_without_endpoints_the_listening_address_is_the_one(
    tmp_path: Path, shard: Callable[..., FakeShard]
) -> None:
    shard("mine", (0, 8))
    with make_client(tmp_path, listen=f"ipc://{tmp_path}/mine.sock") as client:
        client.connect()
        assert client.ready()


def test_too_small_a_shared_memory_is_known_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_fd: int, _offset: int, _length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(PeerError, match=r"cannot reserve \d+ bytes: No space left.*shm_size"):
        make_client(tmp_path, notifier="doorbell")
    assert not list(arena_directory(tmp_path).glob(f"trimaran-arena-{os.getpid()}-*"))
    with closing(make_client(tmp_path, notifier="tcp")):
        """Needs no arena."""
