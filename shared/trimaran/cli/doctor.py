"""`trimaran doctor`: what this machine has, and what is missing."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from trimaran.checkup import Finding, examine
from trimaran.machine import read_machine

_MARKS = {"ok": ("✔", "green"), "note": ("!", "yellow"), "missing": ("✘", "red")}


def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print machine and findings as JSON.")] = False,
) -> None:
    """Show what this machine has for Trimaran, what is missing, and how to mend it.

    The exit code is 1 if something is missing that Trimaran cannot run without.

    Examples:

      trimaran doctor
      trimaran doctor --json | jq .machine.gpus
    """
    machine = read_machine()
    findings = examine(machine)
    if json:
        report = {"machine": asdict(machine), "findings": [asdict(finding) for finding in findings]}
        print(msgspec.json.encode(report).decode())
    else:
        _show(findings, Console(highlight=False))
    if any(finding.verdict == "missing" for finding in findings):
        raise typer.Exit(1)


def _show(findings: list[Finding], console: Console) -> None:
    table = Table(box=None, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        mark, style = _MARKS[finding.verdict]
        table.add_row(Text(mark, style=style), finding.subject, finding.detail)
        if finding.remedy:
            table.add_row("", "", Text(f"→ {finding.remedy}", style=style))
    console.print(table)
