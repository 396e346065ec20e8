"""`trimaran rules`: what a rules file gives each module of a model."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from trimaran.cli import options
from trimaran.gguf import GGUFFile
from trimaran.machine import read_machine
from trimaran.model_path import resolve_model
from trimaran.replicas import for_replica
from trimaran.rules import Chosen, ModuleRow, apply_rules, module_rows
from trimaran.spec import read_spec

_HEADINGS = ("module", "kind", "rule", "implementation", "device", "dtype")
_LAYER = re.compile(r"^model\.layers\.(\d+)(.*)$")


def rules(
    file: Annotated[Path, typer.Argument(help="The rules file, in KTransformers' form or the short one.")],
    model: options.Model = None,
    config_file: options.ConfigFile = None,
    device: options.Device = None,
    assignments: options.Assignments = None,
    json: Annotated[bool, typer.Option("--json", help="Print every module by itself, as JSON.")] = False,
    debug: options.Debug = False,
) -> None:
    """Show which rule of a file each module of a model takes, and what it gives.

    Nothing is loaded: only the model file's metadata are read. GPUs that the rules name need not be here;
    'trimaran plan --rules FILE' says whether it fits this machine. See docs/rules.md.

    Examples:

      trimaran rules rules.yaml --model r1.gguf
      trimaran rules DeepSeek-V3-Chat.yaml --model r1.gguf --json
      trimaran rules rules.yaml --device cpu
    """
    config = options.make_config(
        config_file, assignments, model=model, device=device, rules=file, debug=debug
    )
    with GGUFFile.open(resolve_model(config.model)) as opened:
        spec = read_spec(opened)
    config = for_replica(config, config.attn.replica)
    chosen = apply_rules(config, spec, len(read_machine().gpus), any_gpu=True)
    rows = module_rows(chosen, spec)
    if json:
        content = {"modules": [asdict(row) for row in rows], "notices": chosen.notices}
        print(msgspec.json.encode(content).decode())
    else:
        show(rows, chosen)


@dataclass
class _Group:
    """Modules of consecutive layers that differ in nothing but the layer."""

    row: ModuleRow
    suffix: str | None
    first: int = 0
    last: int = 0

    @property
    def path(self) -> str:
        """With the range of its layers."""
        if self.suffix is None:
            return self.row.path
        layers = f"{self.first}-{self.last}" if self.last > self.first else str(self.first)
        return f"model.layers.{layers}{self.suffix}"


def show(rows: tuple[ModuleRow, ...], chosen: Chosen) -> None:
    """Prints a table, with what layers have in common in one row, and the notices."""
    cells = [_HEADINGS, *(_cells(group) for group in _grouped(rows))]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    for notice in chosen.notices:
        print(notice)


def _cells(group: _Group) -> tuple[str, ...]:
    row = group.row
    rule = "" if row.rule is None else str(row.rule)
    return group.path, row.kind, rule, row.implementation, row.device, row.dtype


def _grouped(rows: tuple[ModuleRow, ...]) -> Iterator[_Group]:
    """Equal rows of consecutive layers together, in the order of their first layers."""
    for in_layers, part in groupby(rows, lambda row: _LAYER.match(row.path) is not None):
        if in_layers:
            yield from _layer_groups(tuple(part))
        else:
            yield from (_Group(row, None) for row in part)


def _layer_groups(rows: tuple[ModuleRow, ...]) -> list[_Group]:
    groups: list[_Group] = []
    open_groups: dict[tuple[object, ...], _Group] = {}
    for row in rows:
        match = _LAYER.match(row.path)
        assert match is not None
        layer, suffix = int(match[1]), match[2]
        key = (suffix, row.kind, row.rule, row.implementation, row.device, row.dtype)
        group = open_groups.get(key)
        if group is not None and group.last == layer - 1:
            group.last = layer
        else:
            open_groups[key] = _Group(row, suffix, layer, layer)
            groups.append(open_groups[key])
    return groups
