"""The `trimaran` command."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from typing import Annotated, NoReturn

import typer

from trimaran import __version__
from trimaran.cli.chat import chat
from trimaran.cli.doctor import doctor
from trimaran.cli.plan import plan
from trimaran.cli.rules import rules
from trimaran.cli.serve import serve
from trimaran.cli.single import attn, experts, gateway, record, replay, stats
from trimaran.cli.trace import trace
from trimaran.cli.usage import one_line_errors
from trimaran.lifecycle import run_guarded


def make_app() -> typer.Typer:
    """The command-line application with all its commands."""
    app = typer.Typer(
        name="trimaran",
        help="Full-size DeepSeek models on one server: attention on the GPU, experts in RAM.\n\n"
        "Start with 'trimaran serve'. 'trimaran COMMAND --help' has examples.",
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    app.command()(serve)
    app.command()(chat)
    app.command()(plan)
    app.command()(rules)
    app.command()(doctor)
    app.command()(trace)
    for single in (gateway, attn):
        app.command(rich_help_panel="Single services")(single)
    app.add_typer(_experts_app(), rich_help_panel="Single services")
    app.command()(version)
    return app


def _experts_app() -> typer.Typer:
    """`trimaran experts`, which is the service itself unless a command follows."""
    app = typer.Typer(name="experts")
    app.callback(invoke_without_command=True)(experts)
    for command in (record, replay, stats):
        app.command()(command)
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        version()
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    del version  # its callback did the work


def version() -> None:
    """Print the version.

    Examples:

      trimaran version
    """
    print(__version__)


def run(arguments: Sequence[str]) -> int:
    """Runs a command line; an expected failure is one line on stderr. Returns the exit code."""
    command = partial(one_line_errors, make_app(), arguments or ["--help"])
    return run_guarded(command, debug="--debug" in arguments)


def main() -> NoReturn:
    """Runs this process's command line."""
    sys.exit(run(sys.argv[1:]))
