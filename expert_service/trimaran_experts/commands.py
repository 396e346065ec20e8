"""What `python -m trimaran_experts COMMAND` does besides serving."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from trimaran.config import Config
from trimaran.config_loader import load_config, parse_assignments
from trimaran.lifecycle import run_guarded
from trimaran.telemetry import configure_logging
from trimaran.units import parse_bytes

from trimaran_experts import segments
from trimaran_experts.record import record, show_stats
from trimaran_experts.replay import replay


def is_command(argv: Sequence[str]) -> bool:
    """Whether the arguments ask for something other than the service."""
    return bool(argv) and argv[0] in ("list", "purge", "record", "replay", "stats")


def run_command(argv: Sequence[str]) -> int:
    """Run it; the process's exit code."""
    arguments = _parser().parse_args(argv)
    return run_guarded(partial(_run, arguments), debug=arguments.debug)


def _run(arguments: argparse.Namespace) -> None:
    config = load_config(arguments.config, parse_assignments(arguments.set))
    configure_logging("experts", "warning", config.log_format)
    work: Callable[[Config, argparse.Namespace], None] = arguments.work
    work(config, arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="trimaran experts")
    commands = parser.add_subparsers(required=True)
    workers = {"list": _list, "purge": _purge, "record": _record, "replay": _replay, "stats": _stats}
    for name, work in workers.items():
        command = commands.add_parser(name)
        command.set_defaults(work=work)
        _add_common(command)
        if name in ("record", "replay"):
            command.add_argument("file", type=Path)
        if name == "record":
            command.add_argument("--limit", default="1GiB")
            command.add_argument("--seconds", type=float, default=60.0)
    return parser


def _list(config: Config, _arguments: argparse.Namespace) -> None:
    segments.show(config)


def _purge(config: Config, _arguments: argparse.Namespace) -> None:
    segments.remove(config)


def _record(config: Config, arguments: argparse.Namespace) -> None:
    record(config, arguments.file, parse_bytes(arguments.limit), arguments.seconds)


def _replay(config: Config, arguments: argparse.Namespace) -> None:
    replay(config, arguments.file)


def _stats(config: Config, _arguments: argparse.Namespace) -> None:
    show_stats(config)


def _add_common(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", metavar="FILE")
    command.add_argument("--set", metavar="OPTION=VALUE", action="append", default=[])
    command.add_argument("--debug", action="store_true")
