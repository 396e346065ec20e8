"""JSON schemas without room for keys that nobody asked for.

A schema that lists properties and says nothing about others allows any others, and a model may go on
inventing them until its tokens are used up. One that is closed here keeps to the listed ones: what fits it
fits the original too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_MAPS = ("properties", "$defs", "definitions")
"""Keywords that hold schemas by name."""

_SINGLE = ("items", "additionalProperties")
_LISTS = ("anyOf", "prefixItems")

_COMBINING = {
    "allOf", "oneOf", "not", "if", "then", "else", "contains", "dependentSchemas", "dependentRequired",
    "patternProperties", "propertyNames", "unevaluatedProperties", "unevaluatedItems", "minProperties",
    "$dynamicRef",
}  # fmt: skip
"""Keywords whose meaning could change if an object elsewhere were closed."""

_BRANCHES = {"anyOf", "$ref"}
_OF_OBJECTS = {"properties", "required", "additionalProperties"}
"""Beside a branch, these say more about the same object."""

_OPEN = {"additionalProperties", "enum", "const"}
"""With one of these it is settled which other properties there may be."""


def closed(schema: Any) -> Any:
    """`schema`, where objects that list their properties have no others unless it says so.

    A schema with keywords that combine objects in other ways than `anyOf` and `$ref` stays as it is.
    """
    if any(_is_combined(part) for part in _parts(schema)):
        return schema
    return _close(schema)


def _is_combined(schema: Mapping[str, Any]) -> bool:
    branches = _BRANCHES & schema.keys()
    return (
        not _COMBINING.isdisjoint(schema)
        or len(branches) > 1
        or (bool(branches) and not _OF_OBJECTS.isdisjoint(schema))
    )


def _close(schema: Any) -> Any:
    if not isinstance(schema, Mapping):
        return schema
    result = dict(schema)
    for name in _MAPS:
        if isinstance(schema.get(name), Mapping):
            result[name] = {key: _close(value) for key, value in schema[name].items()}
    for name in _SINGLE:
        if name in schema:
            result[name] = _close(schema[name])
    for name in _LISTS:
        if isinstance(schema.get(name), list):
            result[name] = [_close(item) for item in schema[name]]
    if _lists_all(schema):
        result["additionalProperties"] = False
    return result


def _lists_all(schema: Mapping[str, Any]) -> bool:
    """Whether the schema lists its properties, all that it requires among them, and leaves others open."""
    properties = schema.get("properties")
    if not isinstance(properties, Mapping) or not _OPEN.isdisjoint(schema):
        return False
    required = schema.get("required", [])
    return isinstance(required, list) and all(name in properties for name in required)


def _parts(schema: Any) -> Iterator[Mapping[str, Any]]:
    """The schema and those inside it, as far as `_close` looks."""
    if not isinstance(schema, Mapping):
        return
    yield schema
    for name in _MAPS:
        if isinstance(schema.get(name), Mapping):
            for value in schema[name].values():
                yield from _parts(value)
    for name in _SINGLE:
        yield from _parts(schema.get(name))
    for name in _LISTS:
        if isinstance(schema.get(name), list):
            for item in schema[name]:
                yield from _parts(item)
