"""Whatever a random model says, a constrained answer parses and validates."""

from __future__ import annotations

import json
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonschema import Draft202012Validator
from llguidance import LLMatcher, LLParserLimits
from trimaran.gguf import GGUFFile
from trimaran.wire import LarkGrammar
from trimaran_attn.grammar.compiler import GrammarCompiler
from trimaran_attn.grammar.constraints import Constraints
from trimaran_attn.grammar.vocabulary import TokenTable, read_token_table

END = 1
N_PAGES = 24
SHORT = {"type": "string", "maxLength": 12}

SCHEMAS: dict[str, dict[str, Any]] = {
    "flat": {
        "type": "object",
        "properties": {"name": SHORT, "age": {"type": "integer", "minimum": 0, "maximum": 150}},
        "required": ["name", "age"],
        "additionalProperties": False,
    },
    "nested": {
        "type": "object",
        "properties": {
            "at": {
                "type": "object",
                "properties": {"x": {"type": "number", "minimum": -1, "exclusiveMaximum": 1.5}, "y": SHORT},
                "required": ["x"],
                "additionalProperties": False,
            },
            "flag": {"type": "boolean"},
        },
        "required": ["at", "flag"],
        "additionalProperties": False,
    },
    "enum": {"enum": ["red", "grün", "青", 7, None, {"deep": [1, 2]}]},
    "array": {"type": "array", "items": {"type": "integer", "multipleOf": 3, "maximum": 99}, "maxItems": 4},
    "tuple": {
        "type": "array",
        "prefixItems": [{"const": 'a"b\\c\u2028'}, {"type": "null"}],
        "items": False,
        "minItems": 2,
    },
    "pattern": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{1,4}(é|ß)?$"},
    "format": {"type": "string", "format": "date"},
    "optional": {
        "type": "object",
        "properties": {"a": {"type": "boolean"}, "b": {"enum": [1, 2]}, "c": {"type": "null"}},
        "additionalProperties": False,
    },
    "ref": {
        "$defs": {
            "tree": {
                "type": "object",
                "properties": {
                    "v": {"type": "integer", "minimum": 0, "maximum": 9},
                    "kids": {"type": "array", "items": {"$ref": "#/$defs/leaf"}, "maxItems": 2},
                },
                "required": ["v"],
                "additionalProperties": False,
            },
            "leaf": {"type": "object", "properties": {}, "additionalProperties": False},
        },
        "$ref": "#/$defs/tree",
    },
    "union": {"anyOf": [{"type": "integer", "minimum": 10, "maximum": 20}, {"type": "null"}, SHORT]},
}


def json_grammar(schema: Any, space: str = "[ \\n]{1,2}") -> str:
    return f"start: %json {json.dumps({'x-guidance': {'whitespace_pattern': space}, **schema})}"


def is_valid(value: Any, schema: Any) -> bool:
    return Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER).is_valid(value)


@pytest.mark.parametrize("temperature", [0.0, 1.0, 2.0])
def test_every_answer_validates(asker: Any, temperature: float) -> None:
    """All schemas side by side in one batch, beside requests without a grammar."""
    for name, schema in SCHEMAS.items():
        asker.submit(name, json_grammar(schema), temperature=temperature)
    asker.submit("free", None, temperature=temperature, max_tokens=20)
    asker.run()
    assert not asker.failures
    for name, schema in SCHEMAS.items():
        assert asker.reasons[name] == "stop", (name, asker.text(name))
        assert is_valid(asker.value(name), schema), (name, asker.text(name))


def test_a_free_batch_mate_says_the_same_as_alone(asker: Any) -> None:
    asker.submit("free", None, max_tokens=20)
    asker.run()
    alone = asker.ids.pop("free")
    asker.submit("free", None, max_tokens=20)
    asker.submit("flat", json_grammar(SCHEMAS["flat"]))
    asker.run()
    assert asker.ids["free"] == alone


def test_the_length_cuts_a_long_answer(asker: Any) -> None:
    asker.submit("long", json_grammar({"type": "string", "minLength": 100}), max_tokens=10)
    asker.run()
    assert asker.reasons["long"] == "length"
    assert len(asker.ids["long"]) == 10


def test_an_answer_that_is_complete_with_the_last_token_stops(asker: Any) -> None:
    asker.submit("yes", 'start: "y"', max_tokens=1)
    asker.run()
    assert (asker.text("yes"), asker.reasons["yes"]) == ("y", "stop")


def test_thinking_comes_before_the_answer(asker: Any) -> None:
    end_think = asker.table.tokens.index(b"</think>")
    grammar = (
        f'start: TEXT <[{end_think}]> answer\nTEXT: /(?s:.{{0,20}})/\nanswer: %json {{"type": "boolean"}}'
    )
    asker.submit("thinker", grammar)
    asker.run()
    ids = asker.ids["thinker"]
    assert asker.reasons["thinker"] == "stop"
    assert ids.count(end_think) == 1
    answer = b"".join(asker.table.tokens[i] for i in ids[ids.index(end_think) + 1 :])
    assert isinstance(json.loads(answer), bool)


def test_endless_thinking_ends_with_the_length(asker: Any) -> None:
    end_think = asker.table.tokens.index(b"</think>")
    grammar = f'start: TEXT <[{end_think}]> "yes"\nTEXT: /(?s:.*)/'
    asker.submit("thinker", grammar, max_tokens=30, logit_bias={end_think: -100.0})
    asker.run()
    assert asker.reasons["thinker"] == "length"
    assert end_think not in asker.ids["thinker"]
    assert not set(asker.ids["thinker"]) & set(asker.table.special_token_ids)
    asker.text("thinker").encode()


def test_bias_cannot_break_the_grammar(asker: Any) -> None:
    letter = asker.table.tokens.index(b"x")
    asker.submit("flat", json_grammar(SCHEMAS["flat"]), logit_bias={letter: 100.0, END: 100.0})
    asker.run()
    assert asker.value("flat")["name"] == "x" * 12


def test_min_tokens_bars_the_end_only_where_more_may_come(asker: Any) -> None:
    asker.submit("digits", "start: /[0-9]{1,20}/", min_tokens=15, logit_bias={END: 50.0})
    asker.submit("word", 'start: "yes"', min_tokens=15)
    asker.run()
    assert len(asker.text("digits")) == 15
    assert asker.ids["digits"][-1] == END
    assert (asker.text("word"), asker.reasons["word"]) == ("yes", "stop")


def test_ignore_eos_goes_on_as_long_as_the_grammar_can(asker: Any) -> None:
    asker.submit("digits", "start: /[0-9]{1,20}/", ignore_eos=True, stop_ids=(), logit_bias={END: 50.0})
    asker.run()
    assert len(asker.text("digits")) == 20
    assert asker.reasons["digits"] == "stop"


def test_own_stop_ids_end_an_answer(asker: Any) -> None:
    nine = asker.table.tokens.index(b"9")
    asker.submit("digits", "start: /[0-9]{40}/", stop_ids=(END, nine), logit_bias={nine: 100.0})
    asker.run()
    assert (asker.ids["digits"], asker.reasons["digits"]) == ([nine], "stop")


def test_logprobs_are_the_models_own(asker: Any) -> None:
    asker.submit("yes", 'start: "yes"', logprobs=3, temperature=0.0)
    asker.run()
    entries = [entry for batch in asker.batches["yes"] for entry in batch.logprobs]
    assert len(entries) == len(asker.ids["yes"])
    # A forced token is hardly ever what a random model finds most likely.
    assert all(entry.logprob <= entry.top[0][1] for entry in entries)
    assert any(entry.logprob < entry.top[0][1] for entry in entries)
    assert all(entry.logprob > -100 for entry in entries)


def test_preempted_requests_go_on_where_they_were(lab: Any, compiler: Any, table: Any, asker: Any) -> None:
    digit = {"type": "integer", "minimum": 0, "maximum": 9}
    schema = {"type": "array", "items": digit, "minItems": 20, "maxItems": 28}
    crowded = type(asker)(lab.engine(Constraints(compiler)), table)
    crowded.engine.scheduler.pages.allocate(N_PAGES - 3)  # of the four pages that both need together
    for each in (asker, crowded):
        for name in ("a", "b"):
            each.submit(
                name, json_grammar(schema, space="[ ]?"), prompt_ids=[*range(5, 64), ord(name)], max_tokens=64
            )
        each.run()
    assert crowded.engine.scheduler.counters.preemptions > 0
    assert asker.engine.scheduler.counters.preemptions == 0
    assert crowded.ids == asker.ids
    assert crowded.reasons == asker.reasons


@pytest.mark.parametrize(
    ("grammar", "problem"),
    [
        ("start: nowhere", "unknown name"),
        ('start: %json {"type": "strange"}', "Invalid type"),
        ('start: %json {"not": {}}', "Unimplemented keys"),
        ('start: %json {"type": "string", "pattern": "(?=a)"}', "look-around"),
        ('start: %json {"$ref": "http://example.com/schema"}', "not present in a registry"),
        ("start: %json " + '{"items":' * 200 + "{}" + "}" * 200, "recursion limit"),
        ("start: <[99999]>", "too large"),
    ],
)
def test_bad_grammars_are_refused_in_one_line(asker: Any, grammar: str, problem: str) -> None:
    asker.submit("bad", grammar)
    asker.submit("good", 'start: "fine"')
    asker.run()
    failure = asker.failures.pop("bad")
    assert (failure.code, failure.param) == ("invalid_request", "grammar")
    assert failure.message.startswith("grammar: ")
    assert problem in failure.message
    assert "\n" not in failure.message
    assert len(failure.message) < 600
    assert not asker.failures
    assert asker.text("good") == "fine"
    assert asker.engine.scheduler.counters.finished["invalid_request"] == 1


class HeldCompiler(GrammarCompiler):
    """Its grammars are ready when the test says so."""

    def __init__(self, table: TokenTable) -> None:
        super().__init__(table)
        self.futures: list[Future[LLMatcher]] = []

    def start(self, grammar: LarkGrammar) -> Future[LLMatcher]:
        self.futures.append(Future())
        return self.futures[-1]


def test_nobody_waits_for_a_grammar_that_compiles(lab: Any, compiler: Any, table: Any, asker: Any) -> None:
    held = HeldCompiler(table)
    patient = type(asker)(lab.engine(Constraints(held)), table)
    patient.submit("slow", 'start: "slow"', max_tokens=9)
    patient.submit("free", None, max_tokens=20, ignore_eos=True)
    while "free" not in patient.reasons:
        patient.step()
    assert "slow" not in patient.ids
    held.futures[0].set_result(compiler.start(LarkGrammar(text='start: "slow"')).result(10))
    patient.run()
    asker.submit("slow", 'start: "slow"', max_tokens=9)
    asker.run()
    assert patient.ids["slow"] == asker.ids["slow"]
    assert patient.text("slow") == "slow"


def test_a_compiler_that_breaks_fails_its_request_only(lab: Any, table: Any, asker: Any) -> None:
    held = HeldCompiler(table)
    broken = type(asker)(lab.engine(Constraints(held)), table)
    broken.submit("bad", 'start: "x"')
    broken.submit("free", None, max_tokens=3, ignore_eos=True)
    held.futures[0].set_exception(RuntimeError("a bug"))
    broken.run()
    assert broken.failures["bad"].code == "internal"
    assert "a bug" not in broken.failures["bad"].message
    assert len(broken.ids["free"]) == 3


def test_a_token_that_is_not_taken_fails_its_request_only(asker: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(
        Constraints, "_allowed", lambda _, ids, vocab: (torch.ones(len(ids), vocab).bool(), {})
    )
    letter = asker.table.tokens.index(b"x")
    asker.submit("bad", 'start: "yes"', logit_bias={letter: 100.0})
    asker.submit("free", None, max_tokens=3, ignore_eos=True)
    asker.run()
    assert asker.failures["bad"].code == "internal"
    assert len(asker.ids["free"]) == 3


def test_a_grammar_that_is_too_long_is_refused_at_once(asker: Any) -> None:
    asker.submit("long", 'start: "' + "x" * 300_000 + '"')
    assert "300009 characters" in asker.failures["long"].message
    assert not asker.engine.has_work


def test_a_grammar_that_explodes_is_refused_on_the_way(lab: Any, table: Any, asker: Any) -> None:
    tight = GrammarCompiler(table, LLParserLimits(step_max_items=60, verbose_errors=False))
    bounded = type(asker)(lab.engine(Constraints(tight)), table)
    bounded.submit("deep", 'start: a\na: a a | "x" | "xx"', ignore_eos=True)
    bounded.submit("shallow", "start: /[0-9]{9}/")
    bounded.run()
    assert bounded.failures["deep"].param == "grammar"
    assert "Too many items" in bounded.failures["deep"].message
    assert bounded.reasons == {"shallow": "stop"}


def test_an_aborted_request_leaves_nothing_behind(asker: Any) -> None:
    asker.submit("gone", json_grammar(SCHEMAS["flat"]))
    asker.engine.step()
    asker.engine.abort("gone")
    asker.submit("gone", 'start: "again"')
    asker.run()
    assert asker.text("gone").endswith("again")


def test_an_engine_without_a_vocabulary_refuses_grammars(lab: Any, table: Any, asker: Any) -> None:
    bare = type(asker)(lab.engine(), table)
    bare.submit("any", 'start: "a"')
    assert bare.failures["any"].param == "grammar"


def test_a_file_without_a_usable_vocabulary_has_no_table(model_path: Path) -> None:
    with GGUFFile.open(model_path) as file:
        metadata = dict(file.metadata)
    assert read_token_table(metadata) is not None
    for key in ("tokenizer.ggml.tokens", "tokenizer.ggml.eos_token_id"):
        assert read_token_table({name: value for name, value in metadata.items() if name != key}) is None
    assert read_token_table({**metadata, "tokenizer.ggml.model": "llama"}) is None
