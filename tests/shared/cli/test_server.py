from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from trimaran.cli.api_client import ApiClient, Health
from trimaran.cli.chat import chat
from trimaran.cli.log_relay import LogLine
from trimaran.cli.server import Server, ServiceDiedError, server_url
from trimaran.cli.services import Service, services_for
from trimaran.cli.signals import SignalInbox
from trimaran.config_loader import load_config
from trimaran.crashes import CrashFile, ServiceCrashes
from trimaran.errors import ConfigError, ModelFileError, PeerError

from .conftest import HEALTH, MakeService

IDLE = "log.info('ready'); stop.wait()"


class Harness:
    """A server of fake services in a run directory, with what it logged."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder = folder
        self.model = model
        self.lines: list[LogLine] = []
        self.inbox = SignalInbox()
        self.others = psutil.Process().children(recursive=True)

    def server(self, *services: Service, **overrides: object) -> Server:
        run_dir = self.folder / "run"
        run_dir.mkdir(mode=0o700, exist_ok=True)
        options = {"model": str(self.model), "gateway.port": 0, **overrides}
        return Server(load_config(None, options, {}), run_dir, self.lines.append, services)

    def messages(self) -> list[str]:
        return [line.message for line in self.lines]

    def children(self) -> list[psutil.Process]:
        """Processes started since; other tests' servers and browsers may still run."""
        return [
            process for process in psutil.Process().children(recursive=True) if process not in self.others
        ]

    def interrupt_later(self, delay_s: float) -> None:
        threading.Timer(delay_s, os.kill, (os.getpid(), signal.SIGTERM)).start()


@pytest.fixture
def harness(tmp_path: Path, model: Path) -> Iterator[Harness]:
    harness = Harness(tmp_path, model)
    with harness.inbox:
        yield harness


def test_a_whole_life(harness: Harness, make_service: MakeService) -> None:
    with harness.server(make_service("attn", IDLE), make_service("gateway", HEALTH)) as server:
        server.start()
        healths: list[object] = []
        assert server.wait_ready(harness.inbox, 30, healths.append)
        assert healths
        harness.interrupt_later(0.1)
        server.supervise(harness.inbox)
        server.stop(harness.inbox)
    assert harness.children() == []
    assert harness.messages().count("stopped") == 2
    stopped = [line.service for line in harness.lines if line.message == "stopped"]
    assert stopped == ["gateway", "attn"]


def test_environment_options_do_not_beat_flags_in_children(
    harness: Harness, make_service: MakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIMARAN_ATTN__MAX_RUNNING", "9")
    body = "log.info(f'max {config.attn.max_running}'); stop.wait()"
    options = {"attn.max_running": 3}
    with harness.server(make_service("attn", body), make_service("gateway", HEALTH), **options) as server:
        server.start()
        assert server.wait_ready(harness.inbox, 30, lambda _health: None)
        deadline = time.monotonic() + 10
        while "max 3" not in harness.messages() and time.monotonic() < deadline:
            time.sleep(0.05)
        server.stop(harness.inbox)
    assert "max 3" in harness.messages()


def test_a_death_while_starting_ends_the_start(harness: Harness, make_service: MakeService) -> None:
    body = "print('about to fail', flush=True); os._exit(7)"
    with harness.server(make_service("attn", body)) as server:
        server.start()
        with pytest.raises(ServiceDiedError, match="the attn service ended with code 7") as caught:
            server.wait_ready(harness.inbox, 30, lambda _health: None)
        assert caught.value.lines[-1] == "about to fail"
    assert harness.children() == []


def test_an_expected_failure_keeps_its_sentence_and_code(harness: Harness, make_service: MakeService) -> None:
    body = "from trimaran.errors import PlanError; raise PlanError('too big', remedy='shrink it')"
    with harness.server(make_service("attn", body)) as server:
        server.start()
        with pytest.raises(PeerError) as caught:
            server.wait_ready(harness.inbox, 30, lambda _health: None)
    assert str(caught.value) == "attn: too big (shrink it)"
    assert caught.value.exit_code == 4


def test_waiting_is_bounded_and_can_be_stopped(harness: Harness, make_service: MakeService) -> None:
    with harness.server(make_service("attn", IDLE)) as server:
        server.start()
        with pytest.raises(PeerError, match="not ready after"):
            server.wait_ready(harness.inbox, 0.5, lambda _health: None)
        harness.interrupt_later(0.1)
        assert not server.wait_ready(harness.inbox, 30, lambda _health: None)
        server.stop(harness.inbox)


def test_a_crashed_service_comes_back(harness: Harness, make_service: MakeService, tmp_path: Path) -> None:
    body = f"""
marker = Path({str(tmp_path / "crashed")!r})
if not marker.exists():
    marker.touch()
    os.kill(os.getpid(), 9)
log.info("second life")
os.kill(os.getppid(), {int(signal.SIGTERM)})
stop.wait()
"""
    with harness.server(make_service("attn", body)) as server:
        server.start()
        server.supervise(harness.inbox)
        server.stop(harness.inbox)
    assert any("was killed by SIGKILL" in message for message in harness.messages())
    assert "second life" in harness.messages()


def test_a_crash_loop_is_given_up(harness: Harness, make_service: MakeService) -> None:
    with harness.server(make_service("attn", "os._exit(3)")) as server:
        for policy in server.policies.values():
            policy.first_delay_s = 0.01
        server.start()
        with pytest.raises(PeerError, match="crashes again and again; last, it ended with code 3"):
            server.supervise(harness.inbox)
    assert harness.children() == []


def stand_ins(make_service: MakeService, *bodies: str) -> list[Service]:
    """Services of one group."""
    return [replace(make_service(f"twin{n}", body), group="twin") for n, body in enumerate(bodies)]


def hurry(server: Server) -> None:
    for policy in server.policies.values():
        policy.first_delay_s = policy.longest_delay_s = policy.patient_delay_s = 0.01


def test_a_crash_loop_of_one_of_several_is_borne(
    harness: Harness, make_service: MakeService, tmp_path: Path
) -> None:
    """It is started again and again, at bounded intervals, and the run directory tells of it."""
    starts = tmp_path / "starts"
    crash = f"""
with open({str(starts)!r}, "a") as file:
    file.write("x")
if os.path.getsize({str(starts)!r}) == 8:
    os.kill(os.getppid(), {int(signal.SIGTERM)})
    stop.wait()
os._exit(3)
"""
    seen = CrashFile(tmp_path / "run")
    with harness.server(*stand_ins(make_service, crash, IDLE)) as server:
        hurry(server)
        server.start()
        assert seen.read() == {"twin0": ServiceCrashes(), "twin1": ServiceCrashes()}
        server.supervise(harness.inbox)
        found = seen.read()
        assert found["twin1"] == ServiceCrashes()
        twin = found["twin0"]
        assert (twin.count, twin.last, twin.in_loop) == (7, "ended with code 3", True)
        assert twin.explain(twin.starts_at) == "crashed 7 times; last, it ended with code 3"
        assert twin.explain(twin.starts_at - 9).endswith("; starts again in 9 s")
        server.stop(harness.inbox)
    notes = [line.message for line in harness.lines if "starting it again" in line.message]
    assert len(notes) == 7
    assert notes[0].startswith("ended with code 3 (crash 1); starting")
    assert notes[-1].startswith("ended with code 3 (crash 7), the others go on; starting")
    assert seen.read() == {}


def test_a_full_disk_does_not_end_supervision(
    harness: Harness, make_service: MakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with harness.server(make_service("attn", "os._exit(3)")) as server:
        monkeypatch.setattr(CrashFile, "write", fail)
        hurry(server)
        server.start()
        with pytest.raises(PeerError, match="crashes again and again"):
            server.supervise(harness.inbox)
    told = [line for line in harness.lines if "cannot write down crashes" in line.message]
    assert told[0].service == "server"
    assert "No space left" in told[0].message


def test_crash_loops_of_all_of_several_end_the_server(harness: Harness, make_service: MakeService) -> None:
    with harness.server(*stand_ins(make_service, "os._exit(3)", "os._exit(3)")) as server:
        hurry(server)
        server.start()
        with pytest.raises(PeerError, match=r"the twin\d service crashes again and again"):
            server.supervise(harness.inbox)
    assert harness.children() == []


def test_a_second_signal_kills(harness: Harness, make_service: MakeService) -> None:
    body = "log.info('ready')\nwhile True: time.sleep(0.01)"
    with harness.server(make_service("attn", body)) as server:
        server.start()
        while "ready" not in harness.messages():
            time.sleep(0.02)
        started = time.monotonic()
        harness.interrupt_later(0.3)
        server.stop(harness.inbox)
        assert time.monotonic() - started < 5
    assert harness.children() == []


def test_bad_beginnings(harness: Harness, make_service: MakeService) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
            harness.server(make_service("attn", IDLE), **{"gateway.port": port})
    with pytest.raises(ConfigError, match="cannot listen on"):
        harness.server(make_service("attn", IDLE), **{"gateway.host": "no.such.host.invalid"})
    with pytest.raises(ModelFileError, match="no such file"):
        harness.server(make_service("attn", IDLE), model="gone.gguf")
    with pytest.raises(ConfigError, match="needs the Python module no_such_module"):
        harness.server(Service("attn", "no_such_module", (), "attn"))


def test_a_server_with_keys_has_one_of_its_own(harness: Harness, make_service: MakeService) -> None:
    server = harness.server(make_service("gateway", HEALTH), **{"gateway.api_keys": "0" * 64})
    assert server.api.has_key
    assert len(server.config.gateway.api_keys) == 2
    config_file = harness.folder / "run" / "config.yaml"
    assert config_file.stat().st_mode & 0o077 == 0
    assert server.key is not None
    assert server.key not in config_file.read_text()


def test_shards_elsewhere_need_no_expert_service_here() -> None:
    own = load_config(None, {}, {})
    remote = load_config(None, {"experts.endpoints": "tcp://10.0.0.2:7000"}, {})
    assert [service.name for service in services_for(own)] == ["experts", "attn", "gateway"]
    assert [service.name for service in services_for(remote)] == ["attn", "gateway"]
    several = services_for(load_config(None, {"attn.replicas": "cuda:0,cuda:1+cuda:2"}, {}))
    assert [service.name for service in several] == ["experts", "attn-0", "attn-1", "gateway"]
    assert [service.group for service in several] == ["", "attn", "attn", ""]
    assert several[2].command(["--config", "x"]).argv[-3:] == ("--config", "x", "--set=attn.replica=1")


def test_one_shard_of_several_is_no_server() -> None:
    part = {"experts.experts": "0-127"}
    with pytest.raises(ConfigError, match=r"experts\.experts is 0-127.*experts\.endpoints"):
        services_for(load_config(None, part, {}))
    named = {**part, "experts.endpoints": "tcp://10.0.0.2:7000,tcp://10.0.0.3:7000"}
    assert [service.name for service in services_for(load_config(None, named, {}))] == ["attn", "gateway"]


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::", "http://[::1]:8000"),
        ("fd00::7", "http://[fd00::7]:8000"),
        ("gpu-box", "http://gpu-box:8000"),
    ],
)
def test_where_a_server_is_found(host: str, url: str) -> None:
    assert server_url(host, 8000) == url


def test_chat_asks_a_server_on_an_ipv6_address(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def health(api: ApiClient, *, timeout_s: float = 5.0) -> Health:
        asked.append(api.url)
        return Health(answers=False, ready=False, state="loading", detail="", progress=None)

    monkeypatch.setattr(ApiClient, "health", health)
    with pytest.raises(PeerError, match="not ready"):
        chat(question=["hello"], host="::", port=9000)
    assert asked == ["http://[::1]:9000"]
