"""A whole server: the three services as children, from start to an orderly end."""

from __future__ import annotations

import hashlib
import os
import secrets
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from trimaran.cli.api_client import ApiClient, Health
from trimaran.cli.children import Child, ServiceCommand, describe_exit
from trimaran.cli.log_relay import LogLine, parse_log_line
from trimaran.cli.restarts import RestartPolicy
from trimaran.cli.services import Service, services_for
from trimaran.cli.signals import STOPPING, SignalInbox
from trimaran.config import Config
from trimaran.config_loader import dump_config, option_environment
from trimaran.crashes import CrashFile, ServiceCrashes
from trimaran.errors import ConfigError, PeerError, TrimaranError
from trimaran.lifecycle import STOP_MARGIN_S
from trimaran.model_path import resolve_model

_POLL_S = 0.2
_IDLE_POLL_S = 60.0


class Server:
    """Three children in one run directory.

    Args:
        config: the configuration of all services; `gateway.port` 0 takes a free port.
        run_dir: private directory for sockets and the services' configuration.
        on_log: gets each log line of a service, from a thread.
        services: what to start, in order; None: what the configuration needs.

    Raises:
        ConfigError: the port is taken, or a service is not installed.
        ModelFileError: there is no such model file.
    """

    def __init__(
        self,
        config: Config,
        run_dir: Path,
        on_log: Callable[[LogLine], None],
        services: Sequence[Service] | None = None,
    ) -> None:
        self.config, self.key = _complete(config, run_dir)
        self.api = ApiClient(server_url(self.config.gateway.host, self.config.gateway.port), self.key)
        self._on_log = on_log
        services = services or services_for(config)
        self._commands = self._write_commands(run_dir, services)
        self._environ = _child_environment(os.environ)
        self._children: dict[str, Child] = {}
        self.policies = {name: RestartPolicy() for name in self._commands}
        self._groups = {service.name: service.group for service in services}
        self._due: dict[str, float] = {}
        self._crashes = {name: ServiceCrashes() for name in self._commands}
        self._crash_file = CrashFile(run_dir)

    @property
    def names(self) -> tuple[str, ...]:
        """Short names of the services, in the order of their start."""
        return tuple(self._commands)

    @property
    def url(self) -> str:
        """Base address of the HTTP API."""
        return self.api.url

    def start(self) -> None:
        """Starts the three services; they load side by side."""
        self._tell_crashes()
        for name in self._commands:
            self._start(name)

    def wait_ready(self, inbox: SignalInbox, timeout_s: float, on_health: Callable[[Health], None]) -> bool:
        """Waits until the server can answer. False: somebody asked to stop.

        Raises:
            PeerError: it took longer than `timeout_s`, or a service ended.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if inbox.wait_for_stop(_POLL_S):
                return False
            self._refuse_deaths()
            health = self.api.health(timeout_s=2.0)
            if health is not None:
                on_health(health)
                if health.ready:
                    return True
        raise PeerError(
            f"the server was not ready after {timeout_s:g} s",
            remedy="look at the lines above; --ready-timeout gives it longer",
        )

    def supervise(self, inbox: SignalInbox) -> None:
        """Restarts services that crash, until somebody asks to stop.

        One of several attention services may crash as often as it likes, while another one works.

        Raises:
            PeerError: a service that the server cannot do without crashes again and again.
        """
        while True:
            due = min(self._due.values(), default=time.monotonic() + _IDLE_POLL_S)
            if inbox.wait_for_stop(due - time.monotonic()):
                return
            self._note_crashes()
            self._note_recoveries()
            self._start_due()

    def stop(self, inbox: SignalInbox) -> None:
        """Stops the services, gateway first, which lets running answers finish for `gateway.drain_s`.

        A further stop signal ends the patience.
        """
        grace_s = self.config.gateway.drain_s + STOP_MARGIN_S
        for child in reversed(self._children.values()):
            child.terminate()
            deadline = time.monotonic() + grace_s
            while child.poll() is None:
                left = deadline - time.monotonic()
                if left <= 0 or any(number in STOPPING for number in inbox.wait(min(left, _POLL_S))):
                    self.kill()
        self.close()

    def kill(self) -> None:
        """Ends every service at once."""
        for child in self._children.values():
            child.kill()

    def close(self) -> None:
        """Ends what still runs, and reaps it. May be called twice."""
        self.kill()
        for child in self._children.values():
            child.close()
        self._children.clear()
        self._crash_file.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- parts ----------------------------------------------------------------------------------------------

    def _write_commands(self, run_dir: Path, services: Sequence[Service]) -> dict[str, ServiceCommand]:
        path = run_dir / "config.yaml"
        path.touch(mode=0o600)
        path.write_text(dump_config(self.config))
        commands = [service.command(["--config", str(path)]) for service in services]
        return {command.name: command for command in commands}

    def _start(self, name: str) -> None:
        self._children[name] = Child(self._commands[name], self._environ, self._relay)

    def _relay(self, name: str, raw: str) -> None:
        self._on_log(parse_log_line(name, raw))

    def _refuse_deaths(self) -> None:
        for child in self._children.values():
            code = child.poll()
            if code is not None:
                raise _death(child, code)

    def _note_crashes(self) -> None:
        for name, child in self._children.items():
            code = child.poll()
            if code is not None and name not in self._due:
                self._note_crash(name, describe_exit(code))

    def _note_crash(self, name: str, end: str) -> None:
        policy, now = self.policies[name], time.monotonic()
        delay = policy.after_crash(now, has_stand_in=self._has_stand_in(name))
        if delay is None:
            raise PeerError(
                f"the {name} service crashes again and again; last, it {end}",
                remedy="its last lines are above",
            )
        self._due[name] = now + delay
        count = self._crashes[name].count + 1
        self._crashes[name] = ServiceCrashes(
            count=count, last=end, in_loop=policy.in_loop(now), starts_at=now + delay
        )
        self._tell_crashes()
        others = ", the others go on" if policy.in_loop(now) else ""
        self._on_log(_note(name, f"{end} (crash {count}){others}; starting it again in {delay:g} s"))

    def _note_recoveries(self) -> None:
        """Services that crashed again and again and have lived for long since."""
        now = time.monotonic()
        recovered = [
            name
            for name, crashes in self._crashes.items()
            if crashes.in_loop and not self.policies[name].in_loop(now)
        ]
        for name in recovered:
            self._crashes[name] = msgspec.structs.replace(self._crashes[name], in_loop=False)
        if recovered:
            self._tell_crashes()

    def _tell_crashes(self) -> None:
        """For the gateway; what it cannot be told is no reason to stop supervising."""
        try:
            self._crash_file.write(self._crashes)
        except OSError as error:
            self._on_log(_note("server", f"cannot write down crashes: {error}"))

    def _has_stand_in(self, name: str) -> bool:
        """Whether another service of its group runs, or will in a moment."""
        group = self._groups[name]
        others = [other for other in self._groups if group and other != name and self._groups[other] == group]
        now = time.monotonic()
        return any(not self.policies[other].in_loop(now) for other in others)

    def _start_due(self) -> None:
        now = time.monotonic()
        for name in [name for name, due in self._due.items() if due <= now]:
            del self._due[name]
            self._children[name].close()
            self._start(name)


class ServiceDiedError(PeerError):
    """A service ended while it was needed; `lines` are the last that it wrote, as text."""

    def __init__(self, message: str, lines: Sequence[str]) -> None:
        super().__init__(message)
        self.lines = lines


def _death(child: Child, code: int) -> TrimaranError:
    lines = [parse_log_line(child.name, raw).message for raw in child.last_lines()]
    error = ServiceDiedError(f"the {child.name} service {describe_exit(code)}", lines)
    # An expected failure has told its reason in its last line, and in its exit code.
    if lines and lines[-1].startswith("error: ") and code > 0:
        error = ServiceDiedError(f"{child.name}: {lines[-1].removeprefix('error: ')}", ())
        error.exit_code = code
    return error


def _note(name: str, message: str) -> LogLine:
    return LogLine(name, "warning", message, {}, message, time.time())


def _complete(config: Config, run_dir: Path) -> tuple[Config, str | None]:
    """The configuration that the services get, and a key for our own requests if the server asks for keys."""
    key, gateway = None, config.gateway
    if gateway.api_keys:
        key = secrets.token_urlsafe(24)
        digest = hashlib.sha256(key.encode()).hexdigest()
        gateway = msgspec.structs.replace(gateway, api_keys=(*gateway.api_keys, digest))
    port = _claim_port(gateway.host, gateway.port)
    complete = msgspec.structs.replace(
        config,
        model=str(resolve_model(config.model)),
        model_name=config.model_name or ("demo" if config.model == "demo" else None),
        run_dir=str(run_dir),
        log_format="json",
        gateway=msgspec.structs.replace(gateway, port=port),
    )
    return complete, key


def _claim_port(host: str, port: int) -> int:
    """The port itself, or a free one for 0, after a look whether it can be had."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return int(probe.getsockname()[1])
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror}", remedy="choose another --host or --port"
        ) from error


def server_url(host: str, port: int) -> str:
    """Where this machine finds a server that listens on `host`: an address, a name, or all interfaces."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)  # noqa: S104
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _child_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without options: the services find them in their file, where flags have won."""
    options = option_environment(environ)
    return {name: value for name, value in environ.items() if name not in options}
