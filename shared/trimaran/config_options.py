"""The options of `Config`, one row each: for the loader, `--help` and the documentation."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any, get_type_hints

import msgspec
from msgspec import inspect

from trimaran.config import Config

ENV_PREFIX = "TRIMARAN_"


@dataclass(frozen=True)
class Option:
    """One leaf of the configuration.

    Attributes:
        path: dotted name, e.g. `gateway.port`.
        type: the annotated type that a value must convert to.
        allowed: what a value may be, in words.
        description: what it does.
        default: the value when nobody sets it.
        is_secret: its values are not to be shown.
    """

    path: str
    type: Any
    allowed: str
    description: str
    default: object
    is_secret: bool = False

    @property
    def env(self) -> str:
        """The environment variable that sets it."""
        return ENV_PREFIX + self.path.replace(".", "__").upper()

    @property
    def is_list(self) -> bool:
        """Whether it holds several values."""
        return isinstance(_core(inspect.type_info(self.type)), inspect.VarTupleType)

    @property
    def is_optional(self) -> bool:
        """Whether `none` is a value."""
        info = _unwrap(inspect.type_info(self.type))
        return isinstance(info, inspect.UnionType) and info.includes_none

    @property
    def has_pattern(self) -> bool:
        """Whether it is text, or several texts, that must match a regular expression."""
        core = _core(inspect.type_info(self.type))
        if isinstance(core, inspect.VarTupleType):
            core = _core(core.item_type)
        return isinstance(core, inspect.StrType) and core.pattern is not None


@cache
def options() -> Mapping[str, Option]:
    """Every option by its dotted path, in the order of `Config`."""
    return MappingProxyType({option.path: option for option in _walk(Config, "")})


def section_names() -> tuple[str, ...]:
    """Names of the nested sections, e.g. `gateway`."""
    return tuple(dict.fromkeys(path.split(".")[0] for path in options() if "." in path))


def nearest(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate spelled most like `name`, by its whole path or its last part, if any is close."""
    known = list(candidates)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    if close:
        return close[0]
    leaves = {path.rpartition(".")[2]: path for path in known}
    close = difflib.get_close_matches(name.rpartition(".")[2], list(leaves), n=1, cutoff=0.75)
    return leaves[close[0]] if close else None


def _walk(section: type[msgspec.Struct], prefix: str) -> Iterator[Option]:
    hints = get_type_hints(section, include_extras=True)
    for field in msgspec.structs.fields(section):
        annotation = hints[field.name]
        if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
            yield from _walk(annotation, f"{prefix}{field.name}.")
            continue
        info = inspect.type_info(annotation)
        description = info.extra_json_schema or {} if isinstance(info, inspect.Metadata) else {}
        yield Option(
            path=prefix + field.name,
            type=annotation,
            allowed=_describe(info),
            description=str(description.get("description", "")),
            default=field.default,
            is_secret=bool(description.get("writeOnly")),
        )


def _unwrap(info: inspect.Type) -> inspect.Type:
    while isinstance(info, inspect.Metadata):
        info = info.type
    return info


def _core(info: inspect.Type) -> inspect.Type:
    """The type without its metadata and without `None`."""
    info = _unwrap(info)
    if not isinstance(info, inspect.UnionType):
        return info
    members = [_unwrap(member) for member in info.types]
    return next(member for member in members if not isinstance(member, inspect.NoneType))


def _describe(info: inspect.Type) -> str:
    """What a value of this type may be, in words."""
    info = _unwrap(info)
    if isinstance(info, inspect.UnionType):
        return f"{_describe(_core(info))}, or none"
    match _core(info):
        case inspect.IntType(ge=low, le=high):
            return "whole number" + _bounds(low, None, high)
        case inspect.FloatType(gt=above, ge=low, le=high):
            return "number" + _bounds(low, above, high)
        case inspect.LiteralType(values=values):
            return "one of " + ", ".join(str(value) for value in values)
        case inspect.VarTupleType(item_type=item):
            return f"list of {_describe(item)}"
        case inspect.StrType(pattern=str(pattern)):
            return "text of the form " + pattern.removeprefix("^").removesuffix("$")
        case inspect.BoolType():
            return "true or false"
        case _:
            return "text"


def _bounds(low: float | None, above: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return f", {low} to {high}"
    if low is not None:
        return f", at least {low}"
    if above is not None:
        return f" above {above:g}" + (f", at most {high:g}" if high is not None else "")
    return f", at most {high}" if high is not None else ""
