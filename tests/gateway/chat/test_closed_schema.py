from __future__ import annotations

from typing import Any

import pytest
from jsonschema import Draft202012Validator
from trimaran_gateway.chat.closed_schema import closed

VALUE = {"type": "object", "properties": {"value": {"type": "integer"}}, "required": ["value"]}


def allows(schema: Any, instance: Any) -> bool:
    return Draft202012Validator(schema).is_valid(instance)


def test_objects_that_list_their_properties_have_no_others() -> None:
    schema = closed(VALUE)
    assert allows(schema, {"value": 1})
    assert not allows(schema, {"value": 1, "more": 2})
    assert "additionalProperties" not in VALUE, "the client's own schema is left alone"


@pytest.mark.parametrize(
    "wrap",
    [
        lambda inner: {"type": "array", "items": inner},
        lambda inner: {"prefixItems": [inner]},
        lambda inner: {"anyOf": [{"type": "null"}, {"type": "array", "items": inner}]},
        lambda inner: {"$defs": {"Inner": inner}, "type": "array", "items": {"$ref": "#/$defs/Inner"}},
        lambda inner: {"items": {"definitions": {"i": inner}, "$ref": "#/items/definitions/i"}},
    ],
)
def test_so_have_objects_inside(wrap: Any) -> None:
    schema = closed(wrap(VALUE))
    assert allows(schema, [{"value": 1}])
    assert not allows(schema, [{"value": 1, "more": 2}])


def test_maps_keep_their_keys() -> None:
    schema = closed({"type": "object", "additionalProperties": VALUE})
    assert allows(schema, {"any": {"value": 1}})
    assert not allows(schema, {"any": {"value": 1, "more": 2}})


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        {**VALUE, "additionalProperties": True},
        {**VALUE, "additionalProperties": {"type": "string"}},
        {**VALUE, "required": ["value", "unlisted"]},
        {**VALUE, "minProperties": 2},
        {**VALUE, "patternProperties": {"^x": {}}},
        {"allOf": [VALUE, {"properties": {"more": {}}}]},
        {"oneOf": [VALUE, {"properties": {"more": {}}}]},
        {"not": {"properties": {"more": {"const": 1}}}},
        {**VALUE, "anyOf": [{"properties": {"more": {}}}, {"required": ["other"]}]},
        {"$defs": {"v": VALUE}, "$ref": "#/$defs/v", "required": ["more"]},
        {"properties": {"a": VALUE, "b": {"if": {}, "then": {}}}},
        {"enum": [{"properties": {"value": 1}}]},
        {"const": {"properties": {}}, "default": VALUE},
        {"properties": {}, "enum": [{"a": 1}]},
        {"properties": 5, "required": 5, "items": 7, "anyOf": 3},
        True,
    ],
)
def test_what_might_change_its_meaning_stays(schema: Any) -> None:
    assert closed(schema) == schema


def test_a_property_may_have_the_name_of_a_keyword() -> None:
    schema = {"type": "object", "properties": {"allOf": {"type": "string"}, "not": {"type": "string"}}}
    assert not allows(closed(schema), {"more": 1})
    assert allows(closed(schema), {"allOf": "x"})


def test_a_function_without_parameters_gets_none() -> None:
    schema = closed({"type": "object", "properties": {}})
    assert allows(schema, {})
    assert not allows(schema, {"invented": 1})
