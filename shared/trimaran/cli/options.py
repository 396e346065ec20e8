"""Options that several commands share, and the configuration that they make."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trimaran.config import Config
from trimaran.config_loader import load_config, parse_assignments
from trimaran.errors import ConfigError
from trimaran.units import parse_bytes, parse_count

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        envvar="TRIMARAN_CONFIG",
        help="YAML file with any of the options in docs/configuration.md.",
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="FILE",
        help="GGUF file, the first of split files, a folder that holds one model, or 'demo'.",
    ),
]
Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="OPTION=VALUE", help="Sets any option, e.g. attn.max_running=4. Repeatable."
    ),
]
Host = Annotated[
    str | None, typer.Option("--host", help="Address to listen on; 0.0.0.0 opens it to the network.")
]
Port = Annotated[int | None, typer.Option("--port", "-p", help="TCP port; 0 takes a free one.")]
Device = Annotated[
    str | None, typer.Option("--device", help="Where attention runs: auto, cpu, cuda:N, or cuda:0+cuda:1.")
]
Context = Annotated[
    str | None, typer.Option("--context", metavar="TOKENS", help="Longest prompt + answer, e.g. 32K.")
]
Rules = Annotated[
    Path | None,
    typer.Option("--rules", metavar="FILE", help="YAML file of rules for modules, see docs/rules.md."),
]
Debug = Annotated[
    bool, typer.Option("--debug", help="Log in detail, and show tracebacks of expected errors too.")
]


def make_config(
    config_file: Path | None,
    assignments: list[str] | None,
    *,
    model: str | None = None,
    host: str | None = None,
    port: int | None = None,
    device: str | None = None,
    context: str | None = None,
    rules: Path | None = None,
    debug: bool = False,
) -> Config:
    """The configuration from file, environment and flags; a flag that was not given is None.

    Raises:
        ConfigError: anything in them is wrong.
    """
    return load_config(
        config_file,
        overrides(
            assignments,
            model=model,
            host=host,
            port=port,
            device=device,
            context=context,
            rules=rules,
            debug=debug,
        ),
    )


def overrides(
    assignments: list[str] | None,
    *,
    model: str | None = None,
    host: str | None = None,
    port: int | None = None,
    device: str | None = None,
    context: str | None = None,
    rules: Path | None = None,
    debug: bool = False,
) -> dict[str, object]:
    """Flags as option paths and values; named flags win over `--set`."""
    flags: dict[str, object] = {
        "model": model,
        "gateway.host": host,
        "gateway.port": port,
        "attn.device": device,
        "attn.context_length": _count(context),
        "attn.rules": None if rules is None else str(rules),
        "log_level": "debug" if debug else None,
    }
    return {
        **parse_assignments(assignments or []),
        **{path: value for path, value in flags.items() if value is not None},
    }


def size(text: str, flag: str) -> int:
    """The amount of memory that `flag` was given, in bytes.

    Raises:
        ConfigError: it is none.
    """
    try:
        return parse_bytes(text)
    except ConfigError as error:
        raise ConfigError(f"{flag}: {error}") from error


def _count(text: str | None) -> int | None:
    try:
        return None if text is None else parse_count(text)
    except ConfigError as error:
        raise ConfigError(f"--context: {error}") from error
