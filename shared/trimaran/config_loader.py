"""Builds the one `Config` from a YAML file, the environment and flags, in rising order of precedence.

A mistake anywhere is a `ConfigError` that names its place (file and line, variable or flag), the option, what
is allowed, and the option's nearest spelling.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import yaml

from trimaran.config import Config
from trimaran.config_options import ENV_PREFIX, Option, nearest, options, section_names
from trimaran.errors import ConfigError
from trimaran.yaml_file import compose, construct

_ASSIGNMENT = "write it as --set attn.max_running=4"


def load_config(
    path: str | Path | None = None,
    overrides: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Config:
    """The configuration of this process.

    Args:
        path: YAML (or JSON) file; None uses none.
        overrides: option path, e.g. `gateway.port`, to value; text is converted to the option's type.
        environ: environment variables; None takes the process's own.

    Raises:
        ConfigError: the file cannot be read, or any value or name is wrong.
    """
    values: dict[str, object] = {}
    if path is not None:
        values |= _from_file(Path(path))
    values |= _from_environ(os.environ if environ is None else environ)
    for name, value in (overrides or {}).items():
        option = _option(name, where="option")
        values[name] = _convert(option, value, where="option", lax=isinstance(value, str))
    return _build(values)


def parse_assignments(assignments: Sequence[str]) -> dict[str, str]:
    """Turns `["attn.max_running=4"]` into overrides.

    Raises:
        ConfigError: an item has no `=`, or no option before it.
    """
    result = {}
    for assignment in assignments:
        name, separator, value = assignment.partition("=")
        if not separator:
            raise ConfigError(f"--set {assignment}: no value", remedy=_ASSIGNMENT)
        if not name.strip():
            raise ConfigError(f"--set {assignment}: no option", remedy=_ASSIGNMENT)
        result[name.strip()] = value.strip()
    return result


def dump_config(config: Config) -> str:
    """The configuration as YAML that `load_config` reads back."""
    return yaml.safe_dump(msgspec.to_builtins(config), sort_keys=False, allow_unicode=True)


def option_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables of `environ` that set options; a supervisor keeps them from its children."""
    names = {option.env for option in options().values()}
    return {name: value for name, value in environ.items() if name in names}


def _build(values: Mapping[str, object]) -> Config:
    tree: dict[str, Any] = {}
    for path, value in values.items():
        section, _, name = path.rpartition(".")
        (tree.setdefault(section, {}) if section else tree)[name] = value
    config = msgspec.convert(tree, Config)
    for name in ("experts", "columns"):
        first, separator, last = getattr(config.experts, name).partition("-")
        if separator and int(first) > int(last):
            raise ConfigError(f"experts.{name}: the range {first}-{last} is empty", remedy=f"{last}-{first}?")
    return config


# --- sources ------------------------------------------------------------------------------------------------


def _from_file(path: Path) -> dict[str, object]:
    root = compose(path, what="configuration file", remedy="check the path given with --config")
    if root is None:
        return {}
    return dict(_leaves(root, path, prefix=""))


def _leaves(node: yaml.Node, path: Path, prefix: str) -> Iterator[tuple[str, object]]:
    where = f"{path}:{node.start_mark.line + 1}"
    if not isinstance(node, yaml.MappingNode):
        name = prefix.removesuffix(".") or "the file"
        raise ConfigError(f"{where}: {name} must be a mapping of option names to values")
    seen: set[str] = set()
    for key, value in node.value:
        where = f"{path}:{key.start_mark.line + 1}"
        name = f"{prefix}{key.value}" if isinstance(key, yaml.ScalarNode) else f"{prefix}?"
        if name in seen:
            raise ConfigError(f"{where}: {name} is given twice")
        seen.add(name)
        if name in section_names():
            if not _is_null(value):
                yield from _leaves(value, path, prefix=f"{name}.")
            continue
        option = _option(name, where)
        yield name, _convert(option, _construct(value, where, name), where)


def _is_null(node: yaml.Node) -> bool:
    return bool(node.tag == "tag:yaml.org,2002:null")


def _construct(node: yaml.Node, where: str, name: str) -> object:
    try:
        return construct(node)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: {name}: this YAML value cannot be read") from error


def _from_environ(environ: Mapping[str, str]) -> dict[str, object]:
    by_variable = {option.env: option for option in options().values()}
    values: dict[str, object] = {}
    for variable, text in environ.items():
        if variable in by_variable:
            option = by_variable[variable]
            values[option.path] = _convert(option, text, where=f"environment variable {variable}", lax=True)
        elif variable.startswith(ENV_PREFIX):
            _refuse_misspelt(variable)
    return values


def _refuse_misspelt(variable: str) -> None:
    """Misspelt options do not pass; foreign variables do, for Kubernetes makes some from service names."""
    name = variable.removeprefix(ENV_PREFIX).lower().replace("__", ".")
    guess = nearest(name, options())
    if "." in name or (guess is not None and "." not in guess):
        remedy = f"did you mean {options()[guess].env}?" if guess else "docs/configuration.md lists them"
        raise ConfigError(f"environment variable {variable} sets no option", remedy=remedy)


# --- values -------------------------------------------------------------------------------------------------


def _option(name: str, where: str) -> Option:
    option = options().get(name)
    if option is not None:
        return option
    guess = nearest(name, options())
    raise ConfigError(
        f"{_at(where)}{name} is no option",
        remedy=f"did you mean {guess}?" if guess else "docs/configuration.md lists them",
    )


def _convert(option: Option, value: object, where: str, *, lax: bool = False) -> object:
    given = value
    if lax and isinstance(value, str):
        if option.is_optional and value.lower() in {"none", "null", ""}:
            return None
        if option.is_list:
            value = [item.strip() for item in value.strip("[]").split(",") if item.strip()]
    try:
        return msgspec.convert(value, option.type, strict=not lax)
    except msgspec.ValidationError:
        # A pattern is for programs; the description says the same with examples.
        remedy = option.description if option.has_pattern else f"allowed: {option.allowed}"
        shown = "what was given" if option.is_secret else f"{given!r:.80}"
        raise ConfigError(f"{_at(where)}{option.path} cannot be {shown}", remedy=remedy) from None


def _at(where: str) -> str:
    return "" if where == "option" else f"{where}: "
