"""Killed, frozen, late and wrong peers, with real processes: noticed, survived, cleaned up after."""

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

import numpy as np
import pytest
from trimaran.errors import PeerError, PeerMismatchError
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
