"""`trimaran trace`: a timeline of a running server's steps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from trimaran.cli import options
from trimaran.errors import ConfigError
from trimaran.timeline import MAX_S
from trimaran.trace_client import find_run_dir, record
from trimaran.trace_file import chrome_trace


def trace(
    output: Annotated[Path, typer.Argument(help="The file to write.")] = Path("trace.json"),
    seconds: Annotated[float, typer.Option(min=0.1, max=MAX_S, help="How long to record.")] = 5.0,
    steps: Annotated[int | None, typer.Option(min=1, help="Record no more than so many steps.")] = None,
    replica: Annotated[
        int | None, typer.Option(min=0, help="Record this attention service only; none: all of them.")
    ] = None,
    run_dir: Annotated[
        Path | None, typer.Option("--run-dir", help="Of the server; none: the one server that runs here.")
    ] = None,
    debug: options.Debug = False,
) -> None:
    """Record who does what in a running server's steps, as a file for https://ui.perfetto.dev.

    It shows scheduling, attention, the way to the experts, their computing, and sampling, layer by layer and
    on one clock. Only a server of this user on this host can be recorded. See docs/tracing.md.

    Examples:

      trimaran trace
      trimaran trace step.json --steps 3
      trimaran trace --replica 1
      trimaran trace --seconds 10 --run-dir /run/trimaran
    """
    del debug  # read where failures are shown
    if not output.absolute().parent.is_dir():
        raise ConfigError(f"{output}: its folder does not exist", remedy="make it first")
    processes, silent = record(run_dir or find_run_dir(), seconds, steps, replica)
    output.write_bytes(msgspec.json.encode(chrome_trace(processes)))
    spans = sum(len(spans) for spans in processes.values())
    count = sum(span.name == "step" for spans in processes.values() for span in spans)
    print(f"{output}: {count} steps, {spans} spans. Open it at https://ui.perfetto.dev.")
    if silent:
        print(f"Left out, since it does not answer: {', '.join(silent)}.")
    if not count:
        print("No step was computed meanwhile: send the server a request while you record.")
