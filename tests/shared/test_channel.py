"""Channels carry typed messages, bound their queues, and survive whatever a peer sends."""

from __future__ import annotations

import asyncio
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trimaran.channel import (
    MAX_FRAMES,
    AsyncClient,
    AsyncServer,
    ChannelOptions,
    Client,
    CurveKeys,
    Malformed,
    Received,
    Server,
)
from trimaran.errors import ConfigError, PeerError
from trimaran.wire import Done, EngineToExperts, ExpertsToEngine, Heartbeat, Submit

EngineServer = Server[EngineToExperts, ExpertsToEngine]
EngineClient = Client[ExpertsToEngine, EngineToExperts]

SUBMIT = Submit(slot=1, sequence=2, layer=3, n_tokens=4)
DONE = Done(slot=1, sequence=2, status=0)


@pytest.fixture
def endpoint(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/t.sock"


@pytest.fixture
def server(endpoint: str) -> Iterator[EngineServer]:
    with EngineServer(endpoint, EngineToExperts) as server:
        yield server


def send_when_connected(
    client: EngineClient, message: EngineToExperts, frames: list[bytes] | None = None
) -> None:
    deadline = time.monotonic() + 5
    while not client.send(message, frames or []):
        assert time.monotonic() < deadline, "the server never took the message"
        time.sleep(0.01)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def expect(event: object) -> Received[object]:
    assert isinstance(event, Received), event
    return event


def test_both_directions_with_frames(server: EngineServer, endpoint: str) -> None:
    with EngineClient(endpoint, ExpertsToEngine) as client:
        payload = os.urandom(100_000)
        send_when_connected(client, SUBMIT, [payload, b"", b"x"])
        request = expect(server.recv(5))
        assert request.message == SUBMIT
        assert [bytes(frame) for frame in request.frames] == [payload, b"", b"x"]
        assert server.send(request.peer, DONE, [payload])
        reply = expect(client.recv(5))
        assert (reply.peer, reply.message, bytes(reply.frames[0])) == (b"", DONE, payload)


def test_recv_all_takes_what_is_there_up_to_a_limit(server: EngineServer, endpoint: str) -> None:
    with EngineClient(endpoint, ExpertsToEngine) as client:
        assert server.recv_all() == []
        send_when_connected(client, SUBMIT)
        for sent_ns in range(4):
            assert client.send(Heartbeat(sent_ns=sent_ns))
        assert server.poll(5)
        time.sleep(0.05)
        assert len(server.recv_all(limit=2)) == 2
        assert [expect(event).message for event in server.recv_all()] == [
            Heartbeat(sent_ns=n) for n in (1, 2, 3)
        ]


def test_waiting_ends(server: EngineServer) -> None:
    start = time.monotonic()
    assert server.recv(0.05) is None
    assert 0.04 < time.monotonic() - start < 1


def test_a_waker_ends_the_wait(server: EngineServer) -> None:
    reader, writer = os.pipe()
    try:
        os.write(writer, b"x")
        start = time.monotonic()
        assert not server.poll(5, [reader])
        assert time.monotonic() - start < 1
    finally:
        os.close(reader)
        os.close(writer)


def test_a_client_knows_whether_it_is_connected(endpoint: str) -> None:
    with EngineClient(endpoint, ExpertsToEngine) as client:
        assert not client.connected
        for _ in range(2):
            with EngineServer(endpoint, EngineToExperts):
                wait_until(lambda: client.connected)
            wait_until(lambda: not client.connected)


def test_sending_to_nobody_answers_false(server: EngineServer, tmp_path: Path) -> None:
    assert not server.send(b"stranger", DONE)
    with EngineClient(f"ipc://{tmp_path}/nobody.sock", ExpertsToEngine) as client:
        assert not client.send(SUBMIT)


def test_a_client_finds_a_server_that_starts_late_and_again(endpoint: str) -> None:
    with EngineClient(endpoint, ExpertsToEngine) as client:
        for _ in range(2):
            with EngineServer(endpoint, EngineToExperts) as server:
                send_when_connected(client, SUBMIT)
                assert expect(server.recv(5)).message == SUBMIT
            time.sleep(0.05)


def test_full_queues_refuse_instead_of_growing(endpoint: str) -> None:
    small = ChannelOptions(high_water=2)
    with (
        EngineServer(endpoint, EngineToExperts, small) as server,
        EngineClient(endpoint, ExpertsToEngine, small) as client,
    ):
        send_when_connected(client, SUBMIT, [bytes(1 << 20)])
        taken = sum(client.send(SUBMIT, [bytes(1 << 20)]) for _ in range(50))
        assert taken < 50
        assert expect(server.recv(5)).message == SUBMIT


def test_garbage_is_an_event(server: EngineServer, endpoint: str) -> None:
    context = zmq.Context()
    stranger = context.socket(zmq.DEALER)
    stranger.connect(endpoint)
    try:
        for parts in ([b""], [b"\xc1"], [b"\x81\xa1t\xa4done"], [b"x"] * (MAX_FRAMES + 2)):
            stranger.send_multipart(parts)
            event = server.recv(5)
            assert isinstance(event, Malformed)
            assert event.peer
            assert event.reason
    finally:
        stranger.close(linger=0)
        context.term()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(st.binary(max_size=64), min_size=1, max_size=MAX_FRAMES + 3))
def test_no_bytes_kill_the_server(server: EngineServer, endpoint: str, parts: list[bytes]) -> None:
    context = zmq.Context.instance()
    with context.socket(zmq.DEALER) as stranger:
        stranger.connect(endpoint)
        stranger.send_multipart(parts)
        assert isinstance(server.recv(5), Malformed | Received)


def test_the_socket_file_is_private_and_removed(tmp_path: Path, endpoint: str) -> None:
    with EngineServer(endpoint, EngineToExperts):
        assert stat.S_IMODE((tmp_path / "t.sock").stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == []


def test_a_second_server_is_refused_and_the_first_goes_on(server: EngineServer, endpoint: str) -> None:
    with pytest.raises(PeerError, match="already serves"):
        EngineServer(endpoint, EngineToExperts)
    with EngineClient(endpoint, ExpertsToEngine) as client:
        send_when_connected(client, SUBMIT)
        assert expect(server.recv(5)).message == SUBMIT


def test_a_socket_file_left_by_a_crash_is_taken_over(tmp_path: Path, endpoint: str) -> None:
    (tmp_path / "t.sock").touch()
    (tmp_path / "t.sock.lock").touch()
    with EngineServer(endpoint, EngineToExperts):
        pass


@pytest.mark.parametrize(
    "endpoint", ["", "t.sock", "http://x", "ipc://", f"ipc:///{'x' * 120}", "tcp://127.0.0.1:x"]
)
def test_bad_endpoints_are_refused(endpoint: str) -> None:
    with pytest.raises(ConfigError):
        EngineServer(endpoint, EngineToExperts)


def test_a_directory_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot listen"):
        EngineServer("ipc:///nowhere/at/all.sock", EngineToExperts)


@pytest.mark.parametrize(
    "endpoint", ["tcp://0.0.0.0:0", "tcp://*:0", "tcp://192.0.2.1:5555", "tcp://example.org:1"]
)
def test_other_hosts_need_curve_keys(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="CURVE"):
        EngineServer(endpoint, EngineToExperts)
    with pytest.raises(ConfigError, match="CURVE"):
        EngineClient(endpoint, ExpertsToEngine)


def test_tcp_on_loopback() -> None:
    with (
        EngineServer("tcp://127.0.0.1:0", EngineToExperts) as server,
        EngineClient(server.endpoint, ExpertsToEngine) as client,
    ):
        send_when_connected(client, SUBMIT)
        assert expect(server.recv(5)).message == SUBMIT
        with pytest.raises(PeerError, match="already serves"):
            EngineServer(server.endpoint, EngineToExperts)


def test_curve_admits_the_cluster_only() -> None:
    secured = ChannelOptions(curve=CurveKeys.generate())
    strange = ChannelOptions(curve=CurveKeys.generate())
    with EngineServer("tcp://127.0.0.1:0", EngineToExperts, secured) as server:
        for options in (strange, None):
            with EngineClient(server.endpoint, ExpertsToEngine, options) as stranger:
                time.sleep(0.2)
                stranger.send(SUBMIT)
                assert server.recv(0.2) is None
        with EngineClient(server.endpoint, ExpertsToEngine, secured) as client:
            send_when_connected(client, SUBMIT)
            assert expect(server.recv(5)).message == SUBMIT


def test_curve_keys_come_from_a_private_file(tmp_path: Path) -> None:
    public_file, secret_file = zmq.auth.create_certificates(tmp_path, "cluster")
    Path(secret_file).chmod(0o600)
    assert CurveKeys.load(secret_file).secret
    Path(secret_file).chmod(0o644)
    with pytest.raises(ConfigError, match="others may read"):
        CurveKeys.load(secret_file)
    Path(public_file).chmod(0o600)
    with pytest.raises(ConfigError, match="no secret key"):
        CurveKeys.load(public_file)
    with pytest.raises(ConfigError, match="no CURVE key file"):
        CurveKeys.load(tmp_path / "missing")


def test_asyncio_flavours(endpoint: str) -> None:
    async def talk() -> None:
        server = AsyncServer[EngineToExperts, ExpertsToEngine](endpoint, EngineToExperts)
        client = AsyncClient[ExpertsToEngine, EngineToExperts](endpoint, ExpertsToEngine)
        try:
            assert await client.recv(0.02) is None
            assert not await server.send(b"stranger", DONE)
            while not await client.send(SUBMIT, [b"tensor"]):
                await asyncio.sleep(0.01)
            request = expect(await server.recv(5))
            assert request.message == SUBMIT
            assert bytes(request.frames[0]) == b"tensor"
            assert await server.send(request.peer, DONE)
            assert expect(await client.recv()).message == DONE
        finally:
            client.close()
            server.close()

    asyncio.run(asyncio.wait_for(talk(), 10))


def test_an_asyncio_client_speaks_to_a_blocking_server(server: EngineServer, endpoint: str) -> None:
    async def talk() -> None:
        client = AsyncClient[ExpertsToEngine, EngineToExperts](endpoint, ExpertsToEngine)
        try:
            while not await client.send(SUBMIT):
                await asyncio.sleep(0.01)
            request = expect(await asyncio.to_thread(server.recv, 5))
            server.send(request.peer, DONE)
            assert expect(await client.recv(5)).message == DONE
        finally:
            client.close()

    asyncio.run(asyncio.wait_for(talk(), 10))
