"""Peers that break the protocol, with a real service: answered in one word, and harmless to others."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from trimaran.arena import Arena, ArenaDims
from trimaran.channel import Client
from trimaran.errors import KernelError, PeerError
from trimaran.run_dir import experts_endpoint
from trimaran.wire import (
    PROTOCOL_VERSION,
    Done,
    EngineToExperts,
    ExpertsToEngine,
    Heartbeat,
    Hello,
    Ready,
    Refused,
    Status,
    Submit,
)
from trimaran_attn.experts_client import ExpertsClient

MakeClient = Callable[..., ExpertsClient]


def works(client: ExpertsClient, model) -> bool:
    batch = model.batch(3)
    y = client.wait(client.submit(1, *batch))
    return bool(np.allclose(y, model.expected(1, *batch), rtol=1e-3, atol=1e-3))


class RawClient:
    """Speaks the protocol by hand, rightly or wrongly."""

    def __init__(self, model, run_dir: Path) -> None:
        self._channel: Client[ExpertsToEngine, EngineToExperts] = Client(
            experts_endpoint(run_dir), ExpertsToEngine
        )
        facts = model.facts
        self.hello = Hello(
            protocol=PROTOCOL_VERSION,
            model_fingerprint=facts.fingerprint,
            hidden_size=facts.hidden_size,
            top_k=facts.top_k,
            n_experts=facts.n_experts,
            layers=facts.layers,
            dtype="f32",
            notifier="tcp",
        )

    def ask(self, message: EngineToExperts, frames: tuple[bytes, ...] = ()) -> ExpertsToEngine:
        deadline = time.monotonic() + 10
        while not self._channel.send(message, frames):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        while True:
            event = self._channel.recv(max(0.0, deadline - time.monotonic()))
            assert event is not None
            if not isinstance(event.message, Heartbeat):
                return event.message

    def close(self) -> None:
        self._channel.close()


@pytest.fixture
def raw_client(model, shared_dir: Path):
    client = RawClient(model, shared_dir)
    yield client
    client.close()


def test_strangers_are_asked_for_a_hello(raw_client: RawClient) -> None:
    answer = raw_client.ask(Submit(slot=0, sequence=1, layer=1, n_tokens=1))
    assert isinstance(answer, Refused)
    assert "hello" in answer.reason


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"protocol": 99}, f"protocol: ours {PROTOCOL_VERSION}, yours 99"),
        ({"hidden_size": -1}, "hidden_size"),
        ({"layers": ()}, "layers: ours 1-2, yours none"),
        ({"dtype": "f64"}, "dtype"),
        ({"notifier": "pigeon"}, "notifier"),
        ({"notifier": "doorbell"}, "needs an arena"),
        ({"notifier": "doorbell", "arena": "/etc/passwd"}, "arena /etc/passwd"),
        ({"notifier": "zmq", "arena": "/nowhere"}, "No such file"),
    ],
)
def test_bad_hellos_are_refused(raw_client: RawClient, changes: dict[str, object], complaint: str) -> None:
    answer = raw_client.ask(msgspec.structs.replace(raw_client.hello, **changes))
    assert isinstance(answer, Refused)
    assert complaint in " ".join((answer.reason, *answer.differences))
    assert isinstance(raw_client.ask(raw_client.hello), Ready)


def test_an_arena_that_contradicts_the_hello_is_refused(raw_client: RawClient, tmp_path: Path) -> None:
    with Arena(ArenaDims(raw_client.hello.hidden_size, 3, 4, 1, "f32"), tmp_path) as arena:
        hello = msgspec.structs.replace(raw_client.hello, notifier="doorbell", arena=str(arena.path))
        answer = raw_client.ask(hello)
    assert isinstance(answer, Refused)
    assert "dimensions" in answer.reason


@pytest.mark.parametrize(
    ("changes", "frames", "status"),
    [
        ({"layer": 0}, None, Status.BAD_LAYER),
        ({"layer": -1}, None, Status.BAD_LAYER),
        ({"layer": 2**40}, None, Status.BAD_LAYER),
        ({"n_tokens": 3}, None, Status.BAD_TOKEN_COUNT),
        ({"n_tokens": -1}, None, Status.BAD_TOKEN_COUNT),
        ({"n_tokens": 2**62}, None, Status.BAD_TOKEN_COUNT),
        ({}, (), Status.BAD_TOKEN_COUNT),
        ({}, (b"", b"", b""), Status.BAD_TOKEN_COUNT),
        ({}, (b"x" * 2048, b"y" * 32, b"\0" * 32), Status.BAD_EXPERT_ID),
        ({}, (b"\xff" * 2048, b"\0" * 32, b"\0" * 32), Status.NOT_FINITE),
        ({"slot": -5}, None, Status.OK),
    ],
)
def test_bad_frames_are_a_status(
    raw_client: RawClient, changes: dict[str, int], frames: tuple[bytes, ...] | None, status: int
) -> None:
    assert isinstance(raw_client.ask(raw_client.hello), Ready)
    fields = {"slot": 0, "sequence": 7, "layer": 1, "n_tokens": 2, **changes}
    good = (bytes(2 * 256 * 4), bytes(2 * 4 * 4), bytes(2 * 4 * 4))
    answer = raw_client.ask(Submit(**fields), good if frames is None else frames)
    assert isinstance(answer, Done)
    assert (answer.status, answer.sequence, answer.slot) == (status, 7, fields["slot"])


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"slot": 2}, Status.BAD_SLOT),
        ({"slot": -1}, Status.BAD_SLOT),
        ({"slot": 2**33}, Status.BAD_SLOT),
        ({"n_tokens": 5}, Status.BAD_TOKEN_COUNT),
        ({"n_tokens": 2**33}, Status.BAD_TOKEN_COUNT),
        ({"layer": 9}, Status.BAD_LAYER),
        ({}, Status.OK),
    ],
)
def test_bad_submits_to_an_arena_are_a_status(
    raw_client: RawClient, tmp_path: Path, changes: dict[str, int], status: int
) -> None:
    hello = raw_client.hello
    with Arena(ArenaDims(hello.hidden_size, hello.top_k, 4, 2, "f32"), tmp_path) as arena:
        hello = msgspec.structs.replace(hello, notifier="zmq", arena=str(arena.path))
        assert isinstance(raw_client.ask(hello), Ready)
        fields = {"slot": 0, "sequence": 7, "layer": 1, "n_tokens": 2, **changes}
        answer = raw_client.ask(Submit(**fields))
    assert isinstance(answer, Done)
    assert answer.status == status


def test_a_hostile_arena_harms_nobody_else(model, shared_dir: Path, make_client: MakeClient) -> None:
    honest = make_client(at=shared_dir)
    honest.connect()
    hostile = make_client(at=shared_dir, max_tokens=4)
    hostile.connect()
    path = Path(hostile._links[0].transport.arena_path)
    random = np.random.default_rng(0)
    for _ in range(20):
        with path.open("r+b") as file:
            file.seek(64)
            file.write(random.bytes(path.stat().st_size - 64))
        x, ids, weights = model.batch(1)
        ids[0, 0] = -7
        with pytest.raises((PeerError, KernelError)):
            hostile.wait(hostile.submit(1, x, ids, weights))
        assert works(honest, model)


@pytest.mark.parametrize("notifier", ["doorbell", "zmq"])
def test_an_arena_that_is_cut_short_harms_nobody_else(
    model,
    shared_dir: Path,
    make_client: MakeClient,
    raw_client: RawClient,
    tmp_path: Path,
    wait_until,
    notifier,
) -> None:
    honest = make_client(at=shared_dir)
    honest.connect()
    hello = raw_client.hello
    call = Submit(slot=0, sequence=1, layer=1, n_tokens=4)
    with Arena(ArenaDims(hello.hidden_size, hello.top_k, 4, 2, "f32"), tmp_path) as arena:
        hello = msgspec.structs.replace(hello, notifier=notifier, arena=str(arena.path))
        assert isinstance(raw_client.ask(hello), Ready)
        os.truncate(arena.path, 0)
        wait_until(lambda: isinstance(raw_client.ask(call), Refused), 10)
        assert works(honest, model)
        refusal = raw_client.ask(hello)
        assert isinstance(refusal, Refused)
        assert "too short" in refusal.reason
