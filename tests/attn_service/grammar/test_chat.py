"""The gateway's grammars on the real engine: a model of noise thinks, answers and calls in perfect form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from trimaran_gateway.chat.grammar import JsonForm
from trimaran_gateway.chat.prompt import ChatPromptRequest, Prompt, PromptBuilder
from trimaran_gateway.chat.template import ChatTemplate
from trimaran_gateway.model import ServedModel, load_model
from trimaran_gateway.output.events import TextDelta, ToolCallDelta, ToolCallStart
from trimaran_gateway.output.parser import OutputFormat, OutputParser

CITY = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 10},
        "unit": {"enum": ["C", "F"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 14},
    },
    "required": ["city", "unit"],
    "additionalProperties": False,
}
NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "description": "d", "parameters": CITY}},
    {"type": "function", "function": {"name": "get-time_2", "parameters": NOTHING}},
]
USER = {"role": "user", "content": "hello"}
INLINE = "{{ messages[0]['content'] }}{# <｜tool▁sep｜> #}"
SEEDS = range(8)


@pytest.fixture(scope="module")
def served(model_path: Path) -> ServedModel:
    return load_model(model_path)


class Answer:
    """What a client would see of one generation."""

    def __init__(self, served: ServedModel, prompt: Prompt, ids: list[int]) -> None:
        output = OutputFormat(reasoning=prompt.reasoning, tools=True, stop_ids=(1,))
        parser = OutputParser(served.tokenizer.vocabulary, output)
        self.text = {"content": "", "reasoning": ""}
        self.calls: list[list[str]] = []
        for event in [*parser.feed(ids), *parser.finish()]:
            match event:
                case TextDelta(kind, text, _):
                    self.text[kind] += text
                case ToolCallStart(_, _, name):
                    self.calls.append([name, ""])
                case ToolCallDelta(index, text):
                    self.calls[index][1] += text


def answers(noise: Any, served: ServedModel, prompt: Prompt) -> list[Answer]:
    """One answer per seed. The ends of thoughts, strings and lists of calls are made likely."""
    markers = served.tokenizer.vocabulary.markers
    ends = [markers.end_think, markers.calls_end, 1]
    assert prompt.constraint is not None
    for seed in SEEDS:
        noise.submit(
            str(seed),
            prompt.constraint.grammar.text,
            prompt_ids=prompt.ids,
            seed=seed,
            max_tokens=3000,
            logit_bias={end: 6.0 for end in ends if end is not None},
        )
    noise.run()
    assert not noise.failures
    assert set(noise.reasons.values()) == {"stop"}
    return [Answer(served, prompt, noise.ids[str(seed)]) for seed in SEEDS]


@pytest.mark.parametrize("thinking", [None, False])
def test_an_answer_by_schema(noise: Any, served: ServedModel, thinking: bool | None) -> None:
    form = JsonForm(CITY, "response_format")
    prompt = served.prompts.build(ChatPromptRequest([USER], answer=form, thinking=thinking))
    assert prompt.reasoning == (thinking is None)
    found = answers(noise, served, prompt)
    for answer in found:
        Draft202012Validator(CITY).validate(json.loads(answer.text["content"]))
    assert any(answer.text["reasoning"] for answer in found) == (thinking is None)


@pytest.mark.parametrize("forced", ["", "get_weather", "get-time_2"])
@pytest.mark.parametrize("inline", [False, True])
def test_forced_calls(noise: Any, served: ServedModel, forced: str, *, inline: bool) -> None:
    builder = served.prompts
    if inline:
        builder = PromptBuilder(served.tokenizer, ChatTemplate(INLINE, bos="", eos=""))
    prompt = builder.build(ChatPromptRequest([USER], tools=TOOLS, force_call=forced))
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in TOOLS}
    for answer in answers(noise, served, prompt):
        assert answer.calls
        assert not answer.text["content"].strip()
        for name, arguments in answer.calls:
            assert name == forced or not forced
            Draft202012Validator(schemas[name]).validate(json.loads(arguments))


def test_strict_tools_may_be_called_or_not(noise: Any, served: ServedModel) -> None:
    request = ChatPromptRequest([USER], tools=TOOLS, strict_tools=frozenset({"get_weather"}), thinking=False)
    prompt = served.prompts.build(request)
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in TOOLS}
    for answer in answers(noise, served, prompt):
        for name, arguments in answer.calls:
            Draft202012Validator(schemas[name]).validate(json.loads(arguments))


def test_a_schema_or_a_call(noise: Any, served: ServedModel) -> None:
    form = JsonForm(CITY, "response_format")
    prompt = served.prompts.build(ChatPromptRequest([USER], tools=TOOLS, answer=form))
    for answer in answers(noise, served, prompt):
        if answer.calls:
            assert not answer.text["content"].strip()
        else:
            Draft202012Validator(CITY).validate(json.loads(answer.text["content"]))


@pytest.mark.parametrize("tools", [[], TOOLS])
def test_a_budget_of_thought(noise: Any, served: ServedModel, tools: list[Any]) -> None:
    prompt = served.prompts.build(ChatPromptRequest([USER], tools=tools, thought_tokens=5))
    assert prompt.reasoning
    assert prompt.constraint is not None
    end = served.tokenizer.vocabulary.markers.end_think
    for seed in SEEDS:
        bias = {end: -100.0 if seed % 2 else 20.0}  # one that never wants to stop, one that does early
        text = prompt.constraint.grammar.text
        noise.submit(str(seed), text, prompt_ids=prompt.ids, seed=seed, max_tokens=40, logit_bias=bias)
    noise.run()
    lengths = [noise.ids[str(seed)].index(end) for seed in SEEDS]
    assert set(lengths[1::2]) == {5}
    assert all(length <= 5 for length in lengths)
    assert any(length < 5 for length in lengths)
    assert all(len(noise.ids[str(seed)]) > 6 for seed in SEEDS[1::2])


def test_no_budget_where_there_is_no_thought(served: ServedModel) -> None:
    prompt = served.prompts.build(ChatPromptRequest([USER], thinking=False, thought_tokens=5))
    assert prompt.constraint is None


def test_lenient_schemas_pass_over_what_cannot_be_enforced(noise: Any, served: ServedModel) -> None:
    schema = {"type": "array", "items": {"type": "boolean"}, "uniqueItems": True, "maxItems": 3}
    for strict in (False, True):
        form = JsonForm(schema, "response_format", strict)
        prompt = served.prompts.build(ChatPromptRequest([USER], answer=form, thinking=False))
        assert prompt.constraint is not None
        noise.submit(str(strict), prompt.constraint.grammar.text, prompt_ids=prompt.ids)
    noise.run()
    assert isinstance(json.loads(noise.text("False")), list)
    assert "uniqueItems" in noise.failures["True"].message


def test_a_clients_engine_options_are_not_taken(noise: Any, served: ServedModel) -> None:
    schema = {"x-guidance": {"lenient": True}, "type": "array", "uniqueItems": True}
    form = JsonForm(schema, "response_format")
    prompt = served.prompts.build(ChatPromptRequest([USER], answer=form, thinking=False))
    assert prompt.constraint is not None
    noise.submit("x", prompt.constraint.grammar.text, prompt_ids=prompt.ids)
    noise.run()
    assert "uniqueItems" in noise.failures["x"].message


def test_text_in_a_schema_cannot_leave_it(noise: Any, served: ServedModel) -> None:
    """Names and constants with Lark's own signs stay constants."""
    value = 'x"}\nstart: /.*/ # <[1]> %json {'
    schema = {"type": "object", "properties": {value: {"const": value}}, "required": [value]}
    form = JsonForm({**schema, "additionalProperties": False}, "response_format")
    prompt = served.prompts.build(ChatPromptRequest([USER], answer=form, thinking=False))
    for answer in answers(noise, served, prompt):
        assert json.loads(answer.text["content"]) == {value: value}
