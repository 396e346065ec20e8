"""Anthropic's and Ollama's own clients, and more of OpenAI's, against the three real processes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import anthropic
import jsonschema
import ollama
import openai
import pytest
from running_server import RunningServer

QUESTION: Any = [{"role": "user", "content": "What is 8 + 5?"}]
PERSON = {
    "type": "object",
    "properties": {
        "name": {"enum": ["Anna", "Ben"]},
        "age": {"type": "integer", "minimum": 1, "maximum": 99},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def test_anthropic_whole_streamed_and_counted(demo_server: RunningServer) -> None:
    thinking: Any = {"type": "enabled", "budget_tokens": 1024}
    asked: dict[str, Any] = {
        "model": "demo",
        "max_tokens": 1500,
        "messages": QUESTION,
        "extra_body": {"temperature": 0},
    }
    with anthropic.Anthropic(base_url=demo_server.url, api_key="none", max_retries=0, timeout=60) as client:
        message = client.messages.create(**asked, thinking=thinking)
        assert [block.type for block in message.content] == ["thinking", "text"]
        assert message.content[-1].text == "13"
        assert message.stop_reason == "end_turn"
        with client.messages.stream(**asked) as stream:
            assert "".join(stream.text_stream) == "13"
        counted = client.messages.count_tokens(model="demo", messages=QUESTION)
        assert counted.input_tokens == message.usage.input_tokens


def test_ollama_whole_streamed_and_formatted(demo_server: RunningServer) -> None:
    with closing(ollama.Client(host=demo_server.url, timeout=60)) as client:
        use_ollama(client)


def use_ollama(client: ollama.Client) -> None:
    options = {"temperature": 0}
    answer = client.chat(model="demo", messages=QUESTION, think=True, options=options)
    assert answer.message.content == "13"
    assert answer.message.thinking
    assert answer.done_reason == "stop"
    parts = list(client.chat(model="demo", messages=QUESTION, stream=True, options=options))
    assert "".join(part.message.content or "" for part in parts) == "13"
    assert parts[-1].eval_count
    formed = client.chat(
        model="demo", messages=QUESTION, format=PERSON, options={**options, "num_predict": 300}
    )
    jsonschema.validate(json.loads(formed.message.content or ""), PERSON)


@pytest.fixture
def client(demo_server: RunningServer) -> Iterator[openai.OpenAI]:
    url = f"{demo_server.url}/v1"
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as client:
        yield client


def test_an_answer_by_schema(client: openai.OpenAI) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
    answer = client.chat.completions.create(
        model="demo", messages=QUESTION, response_format=form, max_tokens=300
    )
    jsonschema.validate(json.loads(answer.choices[0].message.content or ""), PERSON)


def test_a_tool_is_called(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "What is the weather in Paris?"}]
    answer = client.chat.completions.create(
        model="demo",
        messages=messages,
        tools=[WEATHER],
        tool_choice="required",
        temperature=0,
        max_tokens=300,
    )
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    call: Any = (choice.message.tool_calls or [])[0]
    assert call.function.name == "get_weather"
    jsonschema.validate(json.loads(call.function.arguments), WEATHER["function"]["parameters"])


def test_responses(client: openai.OpenAI) -> None:
    response = client.responses.create(model="demo", input="What is 8 + 5?", temperature=0)
    assert response.output_text == "13"


def test_a_second_turn_reuses_the_first(client: openai.OpenAI) -> None:
    noise = "The sky was grey over the quiet harbour. " * 30
    first: Any = [{"role": "user", "content": f"{noise}What is 8 + 5?"}]
    answer = client.chat.completions.create(model="demo", messages=first, temperature=0)
    turns: Any = [*first, {"role": "assistant", "content": answer.choices[0].message.content}, *QUESTION]
    usage = client.chat.completions.create(model="demo", messages=turns, temperature=0).usage
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    assert (usage.prompt_tokens_details.cached_tokens or 0) >= usage.prompt_tokens // 2


def test_several_answers_share_one_prompt(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="demo", messages=QUESTION, n=3, seed=1, temperature=0.5)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
