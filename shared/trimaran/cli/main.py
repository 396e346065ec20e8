"""The `trimaran` command."""

from __future__ import annotations

import sys
from functools import partial
from typing import NoReturn

import typer

from trimaran import __version__
from trimaran.cli.chat import chat
from trimaran.cli.doctor import doctor
from trimaran.cli.plan import plan
from trimaran.cli.serve import serve
from trimaran.cli.single import attn, experts, gateway
from trimaran.cli.trace import trace
from trimaran.lifecycle import run_guarded


def make_app() -> typer.Typer:
    """The command-line application with all its commands."""
    app = typer.Typer(
        name="trimaran",
        help="Full-size DeepSeek models on one server: attention on the GPU, experts in RAM.\n\n"
        "Start with 'trimaran serve'. 'trimaran COMMAND --help' has examples.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.command()(serve)
    app.command()(chat)
    app.command()(plan)
    app.command()(doctor)
    app.command()(trace)
    for single in (gateway, attn, experts):
        app.command(rich_help_panel="Single services")(single)
    app.command()(version)
    return app


def version() -> None:
    """Print the version.

    Examples:

      trimaran version
    """
    print(__version__)


def main() -> NoReturn:
    """Runs the command line; expected failures become one line and an exit code."""
    debug = "--debug" in sys.argv
    sys.exit(run_guarded(partial(make_app(), prog_name="trimaran"), debug=debug))
