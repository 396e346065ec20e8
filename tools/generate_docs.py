"""Writes docs/configuration.md and docs/cli.md from the code; `--check` only says whether they are fresh."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import typer
from trimaran.cli.main import make_app
from trimaran.config import Config
from trimaran.config_options import Option, options

DOCS = Path(__file__).parent.parent / "docs"
_NOTE = "<!-- Written by `make docs` from the code: change it there. -->"
_OPTION_TABLE = ("| option | default | what it does | allowed |", "|---|---|---|---|")
_CONFIGURATION = f"""# Configuration

{_NOTE}

One YAML file serves all three services: `trimaran serve --config server.yaml`. What it leaves out has the
default below. An environment variable beats the file, and a flag beats both. A mistake ends the program with
code 2 and one line that says where it is and what is allowed.

```yaml
model: /models/DeepSeek-R1-Q4_K_M-00001-of-00010.gguf
gateway:
  port: 9000
attn:
  device: cuda:0
  context_length: 32768
```

- Flags: `--set attn.max_running=4` sets any option; the common ones have flags of their own, see
  [cli.md](cli.md).
- Variables: the option's path in capitals after `TRIMARAN_`, with two underscores for the dot:
  `TRIMARAN_GATEWAY__PORT=9000`, `TRIMARAN_MODEL=demo`.
- In both, lists are written with commas, and `none` stands for nothing."""


def configuration_page() -> str:
    """Every option of the configuration, by section."""
    lines = [_CONFIGURATION]
    for section, rows in groupby(options().values(), key=lambda option: option.path.rpartition(".")[0]):
        lines += ["", f"## {_title(section)}", "", *_OPTION_TABLE, *map(_option_row, rows)]
    return "\n".join(lines) + "\n"


def cli_page() -> str:
    """Every command with its options and examples."""
    lines = ["# Command line", "", _NOTE]
    commands: dict[str, Any] = typer.main.get_command(make_app()).commands  # type: ignore[attr-defined]
    for name, command in commands.items():
        lines += _command_section(name, command)
        for below, subcommand in getattr(command, "commands", {}).items():
            lines += _command_section(f"{name} {below}", subcommand)
    lines += [
        "",
        "## Exit codes",
        "",
        "| code | meaning |",
        "|---|---|",
        *(f"| {code} | {meaning} |" for code, meaning in _exit_codes()),
    ]
    return "\n".join(lines) + "\n"


def _command_section(name: str, command: Any) -> list[str]:
    lines = ["", f"## trimaran {name}", "", *_help_text(command.callback)]
    rows = [row for parameter in command.params if (row := _parameter_row(parameter)) is not None]
    return [*lines, "", "| option | what it does |", "|---|---|", *rows] if rows else lines


def _title(section: str) -> str:
    if not section:
        return "Of all services"
    described = (inspect.getdoc(inspect.get_annotations(Config, eval_str=True)[section]) or "").rstrip(".")
    return f"`{section}`: {described[:1].lower()}{described[1:]}"


def _option_row(option: Option) -> str:
    cells = [f"`{option.path}`", f"`{_value(option.default)}`", option.description, _code(option.allowed)]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _value(value: object) -> str:
    match value:
        case None:
            return "none"
        case ():
            return "[]"
        case _:
            return str(value)


def _code(allowed: str) -> str:
    """A regular expression as code, for Markdown would eat its stars."""
    before, form, pattern = allowed.partition("text of the form ")
    return f"{before}{form}`{pattern}`" if form else allowed


def _help_text(callback: Any) -> Iterator[str]:
    """The docstring, its examples as code."""
    text, _, examples = (inspect.getdoc(callback) or "").partition("\nExamples:\n")
    yield text.strip()
    if examples.strip():
        yield from ("", "```sh", *(line.strip() for line in examples.strip().splitlines()), "```")


def _parameter_row(parameter: Any) -> str | None:
    if parameter.name == "help" or not getattr(parameter, "help", None):
        return None
    is_option = parameter.param_type_name == "option"
    names = [*parameter.opts, *parameter.secondary_opts] if is_option else [f"[{parameter.name.upper()}]"]
    shown = ", ".join(f"`{name}`" for name in names)
    if is_option and parameter.metavar:
        shown += f" `{parameter.metavar}`"
    text = parameter.help.replace("|", "\\|")
    return f"| {shown} | {text} |"


def _exit_codes() -> Iterator[tuple[int, str]]:
    """Codes of the error classes, with the first line of what they say of themselves."""
    from trimaran import errors  # noqa: PLC0415

    yield 0, "Done, or stopped by Ctrl-C or SIGTERM."
    for error in (
        errors.TrimaranError,
        errors.ConfigError,
        errors.ModelFileError,
        errors.PlanError,
        errors.PeerError,
        errors.PeerMismatchError,
    ):
        yield error.exit_code, (inspect.getdoc(error) or "").splitlines()[0]


def main() -> int:
    """Writes the pages, or compares them."""
    check = "--check" in sys.argv[1:]
    stale = []
    for name, text in (("configuration.md", configuration_page()), ("cli.md", cli_page())):
        path = DOCS / name
        if not path.exists() or path.read_text() != text:
            stale.append(str(path.relative_to(DOCS.parent)))
            if not check:
                path.write_text(text)
    if stale:
        sys.stdout.write(f"{'stale' if check else 'written'}: {', '.join(stale)}\n")
    if stale and check:
        sys.stdout.write("run `make docs`\n")
    return 1 if stale and check else 0


if __name__ == "__main__":
    sys.exit(main())
