"""What `python -m trimaran_experts COMMAND` does besides serving."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial

from trimaran.config import Config
from trimaran.config_loader import load_config, parse_assignments
from trimaran.lifecycle import run_guarded

from trimaran_experts import segments


def is_command(argv: Sequence[str]) -> bool:
    """Whether the arguments ask for something other than the service."""
    return bool(argv) and argv[0] in ("list", "purge")


def run_command(argv: Sequence[str]) -> int:
    """Run it; the process's exit code."""
    arguments = _parser().parse_args(argv)
    return run_guarded(partial(_run, arguments), debug=arguments.debug)


def _run(arguments: argparse.Namespace) -> None:
    config = load_config(arguments.config, parse_assignments(arguments.set))
    work: Callable[[Config], None] = arguments.work
    work(config)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="trimaran experts")
    commands = parser.add_subparsers(required=True)
    for name, work in (("list", segments.show), ("purge", segments.remove)):
        command = commands.add_parser(name)
        command.set_defaults(work=work)
        _add_common(command)
    return parser


def _add_common(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", metavar="FILE")
    command.add_argument("--set", metavar="OPTION=VALUE", action="append", default=[])
    command.add_argument("--debug", action="store_true")
