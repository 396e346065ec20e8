"""Killed, late, wrong and hostile peers, with real processes: noticed, survived, cleaned up after."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from trimaran.arena import Arena, ArenaDims
from trimaran.channel import Client
from trimaran.errors import KernelError, PeerError, PeerMismatchError
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
from trimaran_attn.experts_client import ExpertsClient, LinkState

MakeClient = Callable[..., ExpertsClient]
NOTIFIERS = ["doorbell", "zmq", "tcp"]


def works(client: ExpertsClient, model) -> bool:
    batch = model.batch(3)
    y = client.wait(client.submit(1, *batch))
    return bool(np.allclose(y, model.expected(1, *batch), rtol=1e-3, atol=1e-3))


@pytest.mark.parametrize("notifier", NOTIFIERS)
def test_a_service_killed_mid_call_is_noticed(
    model, start_experts, make_client: MakeClient, notifier: str
) -> None:
    service = start_experts()
    client = make_client(notifier=notifier)
    client.connect()
    assert works(client, model)
    service.freeze()
    ticket = client.submit(1, *model.batch(3))
    threading.Timer(0.3, service.process.kill).start()
    start = time.monotonic()
    with pytest.raises(PeerError, match=r"went away|silent"):
        client.wait(ticket)
    assert time.monotonic() - start < 3.5
    with pytest.raises(PeerError, match="not ready"):
        client.submit(1, *model.batch(3))


@pytest.mark.parametrize("notifier", NOTIFIERS)
def test_a_service_that_comes_back_is_found_again(
    model, start_experts, make_client: MakeClient, wait_until, arenas, notifier: str
) -> None:
    before = arenas()
    client = make_client(notifier=notifier)
    for _ in range(2):
        service = start_experts()
        if client.statuses()[0].detail == "no expert service there yet":
            client.connect()
        wait_until(client.ready, 20)
        assert works(client, model)
        assert len(arenas() - before) == (0 if notifier == "tcp" else 1)
        service.kill()
        start = time.monotonic()
        wait_until(lambda: not client.ready(), 5)
        assert time.monotonic() - start < 3.5


def test_a_frozen_service_times_out_and_serves_again(
    model, start_experts, make_client: MakeClient, wait_until
) -> None:
    service = start_experts()
    client = make_client(call_timeout_s=0.5)
    client.connect()
    service.freeze()
    start = time.monotonic()
    with pytest.raises(PeerError, match="in time"):
        client.wait(client.submit(1, *model.batch(3)))
    assert time.monotonic() - start < 2
    service.process.send_signal(signal.SIGCONT)
    wait_until(client.ready)
    assert works(client, model)


def test_a_frozen_idle_service_is_noticed(start_experts, make_client: MakeClient, wait_until) -> None:
    service = start_experts()
    client = make_client()
    client.connect()
    service.freeze()
    start = time.monotonic()
    wait_until(lambda: not client.ready(), 8)
    assert 2 < time.monotonic() - start < 5.5
    assert "silent" in client.statuses()[0].detail


def test_a_service_that_starts_late_is_waited_for(model, start_experts, make_client: MakeClient) -> None:
    client = make_client()
    said: list[str] = []
    threading.Timer(1.0, start_experts).start()
    client.connect(lambda detail, progress: said.append(detail))
    assert "no expert service there yet" in said[0]
    assert works(client, model)


def test_a_service_that_never_comes_is_given_up(make_client: MakeClient, run_dir: Path) -> None:
    client = make_client(connect_timeout_s=0.5)
    start = time.monotonic()
    with pytest.raises(PeerError, match=r"no expert service at ipc://.*trimaran experts"):
        client.connect()
    assert time.monotonic() - start < 2
    assert client.statuses()[0].state is LinkState.CONNECTING


def test_another_model_is_refused_with_what_differs(
    other_model, shared_dir: Path, make_client: MakeClient
) -> None:
    with pytest.raises(PeerMismatchError, match=r"model: other expert weights .*same model file"):
        make_client(at=shared_dir, facts=other_model.facts).connect()


def test_other_dimensions_are_refused_with_what_differs(
    model, shared_dir: Path, make_client: MakeClient
) -> None:
    facts = replace(model.facts, top_k=5, layers=(1, 2, 3))
    with pytest.raises(PeerMismatchError, match="top_k: ours 4, yours 5; layers: ours 1-2, yours 1-3"):
        make_client(at=shared_dir, facts=facts).connect()


def test_a_restart_with_another_model_is_not_ready(
    model, other_model, start_experts, make_client: MakeClient, wait_until
) -> None:
    service = start_experts()
    client = make_client()
    client.connect()
    service.kill()
    start_experts(path=other_model.path)
    wait_until(lambda: client.statuses()[0].state is LinkState.REFUSED, 20)
    with pytest.raises(PeerError, match="not ready"):
        client.submit(1, *model.batch(1))


CLIENT = """
import sys, time
from pathlib import Path
from trimaran.config import ExpertsConfig
from trimaran.fingerprint import fingerprint
from trimaran.gguf import GGUFFile
from trimaran.spec import read_spec
from trimaran_attn.experts_client import ExpertsClient, ModelFacts
import numpy as np
file = GGUFFile.open(Path(sys.argv[1]))
spec = read_spec(file)
facts = ModelFacts(fingerprint(file), spec.hidden_size, spec.moe.top_k, spec.moe.n_experts, (1, 2))
client = ExpertsClient(ExpertsConfig(notifier=sys.argv[3]), facts, sys.argv[2])
client.connect()
print("connected", flush=True)
x = np.zeros((200, spec.hidden_size), np.float32)
ids = np.zeros((200, spec.moe.top_k), np.int32)
while True:
    client.wait(client.submit(1, x, ids, np.ones(ids.shape, np.float32)))
"""


@pytest.mark.parametrize("notifier", NOTIFIERS)
def test_a_killed_client_is_detached_and_its_arena_removed(
    model, run_dir: Path, start_experts, make_client: MakeClient, arenas, notifier: str
) -> None:
    before = arenas()
    service = start_experts()
    mine = make_client()
    mine.connect()
    my_arena = arenas() - before
    command = [sys.executable, "-c", CLIENT, str(model.path), str(run_dir), notifier]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as victim:
        assert victim.stdout is not None
        assert victim.stdout.readline() == "connected\n"
        time.sleep(0.2)
        victim.kill()
    start = time.monotonic()
    assert service.wait_for("client detached")["reason"] in {"went away", "silent for 3 s"}
    assert time.monotonic() - start < 4.5
    assert works(mine, model)
    assert len(arenas() - before) == (1 if notifier == "tcp" else 2)
    late = make_client()  # whoever starts next cleans up
    late.connect()
    assert len(arenas() - before) == 2
    assert my_arena <= arenas()
    assert works(mine, model)


def test_leftovers_are_removed_when_a_service_starts(start_experts, run_dir: Path) -> None:
    left = Path("/dev/shm") / f"trimaran-arena-1-{os.getpid()}"
    left.touch(mode=0o600)
    service = start_experts()
    service.wait_for("ready")
    assert not left.exists()


@pytest.mark.parametrize(
    ("options", "code", "complaint"),
    [
        ({"model": "/nowhere.gguf"}, 3, "no such file"),
        ({"experts.experts": "3-99"}, 2, "experts are 0-15"),
        ({"experts.columns": "0-15"}, 2, "multiples of 32"),
        ({"experts.columns": "0-512"}, 2, "intermediate columns are 0-255"),
        ({"experts.cpus": "4095"}, 2, "may not use CPU 4095"),
        ({"experts.node": "900"}, 2, "machine's nodes are"),
        ({"experts.listen": "tcp://0.0.0.0:0"}, 2, "CURVE"),
        ({"experts.listen": "nonsense"}, 2, "endpoint"),
    ],
)
def test_what_cannot_be_served_is_one_line(
    start_experts, options: dict[str, str], code: int, complaint: str
) -> None:
    service = start_experts(**options)
    assert service.process.wait(20) == code
    lines = [line for line in service.log.read_text().splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert complaint in lines[0]


def test_a_second_service_at_the_same_place_is_refused(model, start_experts, make_client: MakeClient) -> None:
    start_experts().wait_for("ready")
    second = start_experts()
    assert second.process.wait(20) == 5
    assert "already serves" in second.log.read_text()
    client = make_client()
    client.connect()
    assert works(client, model)


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
