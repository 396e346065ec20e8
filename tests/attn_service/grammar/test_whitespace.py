"""The gateway's JSON grammars leave no room for endless white space, at whatever place between two tokens."""

from __future__ import annotations

import json
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer
from trimaran_gateway.chat.grammar import JsonForm, json_constraint

LONGEST = 25
"""A line break and 24 spaces."""

TOKENS = ["{", '"a"', ":", "[", "1", ",", "true", "]", ",", '"b"', ":", "null", "}"]
ANY = {"type": "object"}
EXACT = {
    "type": "object",
    "properties": {"a": {"type": "array"}, "b": {"type": "null"}},
    "required": ["a", "b"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def letters() -> LLTokenizer:
    return LLTokenizer("byte")


def longest_run(matcher: LLMatcher, letters: LLTokenizer) -> int:
    """Of white space that may follow here."""
    runs = [0]
    for space in " \n\t\r":
        further = matcher.deep_copy()
        ids = letters.tokenize_str(space)
        if further.try_consume_tokens(ids) == len(ids):
            runs.append(1 + longest_run(further, letters))
    return max(runs)


@pytest.mark.parametrize("schema", [ANY, EXACT])
@pytest.mark.parametrize("strict", [True, False])
def test_white_space_is_bounded_between_all_tokens(letters: LLTokenizer, schema: Any, strict: bool) -> None:
    grammar = json_constraint(JsonForm(schema, "response_format", strict)).grammar.text
    matcher = LLMatcher(letters, LLMatcher.grammar_from_lark(grammar))
    assert longest_run(matcher, letters) == 0
    for token in TOKENS:
        ids = letters.tokenize_str(token)
        assert matcher.try_consume_tokens(ids) == len(ids), token
        run = longest_run(matcher, letters)
        assert run == (0 if token == TOKENS[-1] else LONGEST), token


@pytest.mark.parametrize("indent", [None, 0, 2, 4, "\t"])
def test_usual_layouts_are_allowed(letters: LLTokenizer, indent: Any) -> None:
    text = json.dumps({"a": [1, {"b": {"c": [True]}}], "d": "x  y"}, indent=indent)
    grammar = json_constraint(JsonForm(ANY, "response_format")).grammar.text
    matcher = LLMatcher(letters, LLMatcher.grammar_from_lark(grammar))
    ids = letters.tokenize_str(text)
    assert matcher.try_consume_tokens(ids) == len(ids)
    assert matcher.is_accepting()
