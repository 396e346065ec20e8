"""`trimaran gateway`, `attn` and `experts`: one service alone, in place of this process."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from trimaran.cli import options
from trimaran.cli.services import ATTN, EXPERTS, GATEWAY, Service
from trimaran.errors import ConfigError


def gateway(
    model: options.Model = None,
    config_file: options.ConfigFile = None,
    host: options.Host = None,
    port: options.Port = None,
    assignments: options.Assignments = None,
    debug: options.Debug = False,
) -> None:
    """Run the HTTP gateway alone. It needs no torch and no GPU.

    It takes tokeniser and chat template from the model file, and finds the attention service in the run
    directory. Use it where a process manager of your own starts the three services.

    Examples:

      trimaran gateway --model r1.gguf --set run_dir=/run/trimaran
      trimaran gateway --config server.yaml --host 0.0.0.0
    """
    _become(
        GATEWAY, config_file, options.overrides(assignments, model=model, host=host, port=port), debug=debug
    )


def attn(
    model: options.Model = None,
    config_file: options.ConfigFile = None,
    device: options.Device = None,
    context: options.Context = None,
    rules: options.Rules = None,
    assignments: options.Assignments = None,
    debug: options.Debug = False,
) -> None:
    """Run the attention service alone: everything of the model but the routed experts.

    It finds the expert service in the run directory, or where experts.endpoints says.

    Examples:

      trimaran attn --model r1.gguf --set run_dir=/run/trimaran
      trimaran attn --config server.yaml --device cuda:0
    """
    _become(
        ATTN,
        config_file,
        options.overrides(assignments, model=model, device=device, context=context, rules=rules),
        debug=debug,
    )


def experts(
    context: typer.Context,
    model: options.Model = None,
    config_file: options.ConfigFile = None,
    assignments: options.Assignments = None,
    list_: Annotated[bool, typer.Option("--list", help="Show the packed experts that were kept.")] = False,
    purge: Annotated[bool, typer.Option("--purge", help="Remove those that nobody uses.")] = False,
    debug: options.Debug = False,
) -> None:
    """Run the expert service alone: the routed experts, in RAM, on the CPU.

    It keeps large models' packed experts in memory for the next start (option experts.store).

    Examples:

      trimaran experts --model r1.gguf --set run_dir=/run/trimaran
      trimaran experts --model r1.gguf --set experts.experts=0-127
      trimaran experts --list
      trimaran experts --purge
    """
    if context.invoked_subcommand is not None:
        return
    if list_ and purge:
        raise ConfigError("--list and --purge are two commands", remedy="give one of them")
    command = ["list"] if list_ else ["purge"] if purge else []
    _become(EXPERTS, config_file, options.overrides(assignments, model=model), debug=debug, command=command)


def record(
    file: Annotated[Path, typer.Argument(help="A new file; only you can read it.")],
    limit: Annotated[str, typer.Option("--limit", metavar="SIZE", help="Most that is written.")] = "1GiB",
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, help="How long to record at most.")] = 60.0,
    config_file: options.ConfigFile = None,
    assignments: options.Assignments = None,
    debug: options.Debug = False,
) -> None:
    """Record the layer calls of a running expert service, for 'trimaran experts replay'.

    It ends when the time is up, the file has its size, or by Ctrl-C.

    Examples:

      trimaran experts record calls.rec --set run_dir=/run/trimaran
      trimaran experts record calls.rec --seconds 10 --limit 256MiB --set run_dir=/run/trimaran
    """
    command = ["record", str(file), f"--limit={options.size(limit, '--limit')}", f"--seconds={seconds}"]
    _become(EXPERTS, config_file, options.overrides(assignments), debug=debug, command=command)


def replay(
    file: Annotated[Path, typer.Argument(help="What 'trimaran experts record' wrote.")],
    model: options.Model = None,
    config_file: options.ConfigFile = None,
    assignments: options.Assignments = None,
    debug: options.Debug = False,
) -> None:
    """Run recorded layer calls against the kernels alone: times by layer, and answers compared.

    The exit code is not 0 if an answer is not the recorded one.

    Examples:

      trimaran experts replay calls.rec --model r1.gguf
      trimaran experts replay calls.rec --model r1.gguf --set experts.isa=avx2 --set precision=exact
    """
    command = ["replay", str(file)]
    _become(EXPERTS, config_file, options.overrides(assignments, model=model), debug=debug, command=command)


def stats(
    config_file: options.ConfigFile = None,
    assignments: options.Assignments = None,
    debug: options.Debug = False,
) -> None:
    """Show the counters of a running expert service, and how long each layer's calls took.

    Examples:

      trimaran experts stats --set run_dir=/run/trimaran
    """
    _become(EXPERTS, config_file, options.overrides(assignments), debug=debug, command=["stats"])


def _become(
    service: Service,
    config_file: Path | None,
    overrides: dict[str, object],
    *,
    debug: bool,
    command: Sequence[str] = (),
) -> NoReturn:
    """Replaces this process by the service, so that signals and exit codes are its own."""
    arguments = [*command, *(f"--set={path}={value}" for path, value in overrides.items())]
    if config_file is not None:
        arguments.append(f"--config={config_file}")
    if debug:
        arguments += ["--debug", "--set=log_level=debug"]
    argv = service.command(arguments).argv
    os.execv(argv[0], list(argv))  # noqa: S606 - that there is no shell is the point
