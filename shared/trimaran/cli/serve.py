"""`trimaran serve`: the whole server in one command."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Annotated, TextIO

import msgspec
import typer
from rich.console import Console

from trimaran.arena import arena_directory
from trimaran.arena import remove_leftovers as remove_dead_arenas
from trimaran.cli import options
from trimaran.cli.display import Display, PlainDisplay, TerminalDisplay
from trimaran.cli.greeting import greet
from trimaran.cli.leftovers import RunDirLock, remove_dead_run_dirs
from trimaran.cli.server import Server, ServiceDiedError
from trimaran.cli.signals import SignalInbox
from trimaran.config import Config
from trimaran.errors import PeerError
from trimaran.gguf import GGUFFile
from trimaran.lifecycle import die_with_supervisor
from trimaran.machine import Machine, read_machine
from trimaran.model_path import resolve_model
from trimaran.plan import check_plan, make_plan
from trimaran.replicas import for_replica, replicas
from trimaran.rules import apply_rules
from trimaran.run_dir import default_run_dir, open_run_dir
from trimaran.spec import read_spec

READY_TIMEOUT_S = 3600.0


def serve(
    model: options.Model = None,
    config_file: options.ConfigFile = None,
    host: options.Host = None,
    port: options.Port = None,
    device: options.Device = None,
    context: options.Context = None,
    rules: options.Rules = None,
    assignments: options.Assignments = None,
    ready_timeout: Annotated[
        float,
        typer.Option(min=1, max=86400, help="Seconds that loading may take; a 400 GB file takes minutes."),
    ] = READY_TIMEOUT_S,
    greeting: Annotated[
        bool, typer.Option(help="Ask the model one question when it is ready, and print its answer.")
    ] = True,
    plan: Annotated[
        bool, typer.Option(help="Plan first, and refuse what cannot fit (see 'trimaran plan').")
    ] = True,
    debug: options.Debug = False,
) -> None:
    """Start a server: the gateway, the attention service (or several) and the expert service.

    It prints its address when it is ready, and runs until Ctrl-C, which stops everything that it started.

    Examples:

      trimaran serve
      trimaran serve --model DeepSeek-R1-Q4_K_M-00001-of-00010.gguf
      trimaran serve --model DeepSeek-R1/ --device cuda:0
      trimaran serve --config server.yaml --port 9000
      trimaran serve --set attn.max_running=4 --context 32K
      trimaran serve --model r1.gguf --set attn.replicas=cuda:0,cuda:1
    """
    config = options.make_config(
        config_file,
        assignments,
        model=model,
        host=host,
        port=port,
        device=device,
        context=context,
        rules=rules,
        debug=debug,
    )
    if plan:
        check_fit(config, read_machine())
    display = make_display(config, sys.stdout)
    die_with_supervisor()
    with (
        SignalInbox() as inbox,
        claimed_run_dir(config, display) as run_dir,
        Server(config, run_dir, display.log) as server,
    ):
        _run(server, inbox, display, ready_timeout=ready_timeout, greeting=greeting)


def check_fit(config: Config, machine: Machine) -> None:
    """Refuses, before anything starts, a model that the machine cannot hold.

    Raises:
        ConfigError: the rules file is wrong.
        ModelFileError: the file is no model that can be served.
        PlanError: it does not fit.
    """
    with GGUFFile.open(resolve_model(config.model)) as file:
        spec = read_spec(file)
        for number in replicas(config):
            chosen = apply_rules(for_replica(config, number), spec, len(machine.gpus))
            held = chosen.held(file.tensors)
            check_plan(make_plan(spec, file.tensors, machine, chosen.config, held=held))


def _run(
    server: Server, inbox: SignalInbox, display: Display, *, ready_timeout: float, greeting: bool
) -> None:
    """Starts the server, greets, and supervises it until somebody asks to stop."""
    try:
        if start(server, inbox, display, ready_timeout):
            if greeting:
                greet(server.api, display)
            display.say(f"Ready at {server.url} — Ctrl-C stops it.")
            server.supervise(inbox)
        display.say("Stopping …")
    finally:
        server.stop(inbox)


def start(server: Server, inbox: SignalInbox, display: Display, timeout_s: float) -> bool:
    """Starts the server and waits until it can answer. False: somebody asked to stop.

    Raises:
        PeerError: a service ended, or it took longer than `timeout_s`.
    """
    try:
        with display.starting(server.names):
            server.start()
            return server.wait_ready(inbox, timeout_s, display.health)
    except ServiceDiedError as error:
        for line in error.lines:
            display.say(f"  {line}")
        raise


def make_display(config: Config, stream: TextIO) -> Display:
    """Bars on a terminal, lines elsewhere; the services' own JSON records when asked for."""
    if stream.isatty() and config.log_format != "json":
        return TerminalDisplay(Console(file=stream, highlight=False))
    return PlainDisplay(stream, raw_logs=config.log_format == "json")


@contextlib.contextmanager
def claimed_run_dir(config: Config, display: Display) -> Iterator[Path]:
    """This server's own run directory. What killed servers left behind is removed before and after."""
    for leftover in remove_dead_run_dirs(default_run_dir().parent):
        display.say(f"removed {leftover}, left behind by a server that was killed")
    with open_run_dir(config.run_dir) as run_dir, RunDirLock(run_dir.path):
        _remove_dead_arenas(run_dir.path)
        try:
            yield run_dir.path
        finally:
            _remove_dead_arenas(run_dir.path)


def _remove_dead_arenas(run_dir: Path) -> None:
    """A service that had to be killed could not remove its shared memory."""
    with contextlib.suppress(PeerError):  # no tmpfs: then there is no arena either
        remove_dead_arenas(arena_directory(run_dir))


@contextlib.contextmanager
def own_server(config: Config) -> Iterator[Server]:
    """A server for one user alone, on a free port; stopped when the block ends, however it does."""
    gateway = msgspec.structs.replace(config.gateway, port=0)
    own = msgspec.structs.replace(config, gateway=gateway, log_level="warning")
    display = make_display(own, sys.stderr)
    with claimed_run_dir(own, display) as run_dir, Server(own, run_dir, display.log) as server:
        try:
            with SignalInbox() as inbox:
                is_ready = start(server, inbox, display, READY_TIMEOUT_S)
            if not is_ready:
                raise KeyboardInterrupt
            with _exit_on_termination():
                yield server
        finally:
            with SignalInbox() as inbox:
                server.stop(inbox)


@contextlib.contextmanager
def _exit_on_termination() -> Iterator[None]:
    """SIGTERM and SIGHUP unwind the stack, so that the server is stopped in order."""

    def leave(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    previous = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
