"""A command line that cannot be read is an error like any other: one line that says where help is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import typer

from trimaran.errors import ConfigError

# Older versions of typer raise click's exceptions, newer ones their own: this is the base of either.
_UNREADABLE: type[Exception] = typer.BadParameter.__mro__[2]


def one_line_errors(app: typer.Typer, arguments: Sequence[str]) -> int:
    """Runs `app`; returns the exit code.

    Raises:
        ConfigError: an option, argument or command is unknown, missing or has no such value.
        KeyboardInterrupt: it was interrupted.
    """
    try:
        code = app(list(arguments), prog_name="trimaran", standalone_mode=False)
    except typer.Abort as error:
        raise KeyboardInterrupt from error
    except _UNREADABLE as error:
        raise _as_config_error(error) from error
    return code if isinstance(code, int) else 0


def _as_config_error(error: Any) -> ConfigError:
    message = " ".join(error.format_message().split()).rstrip(".")
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "trimaran"
    return ConfigError(message[:1].lower() + message[1:], remedy=f"see `{command} --help`")
