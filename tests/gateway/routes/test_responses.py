from __future__ import annotations

import json
from typing import Any

import openai
import pytest

TOOL = {
    "type": "function",
    "name": "get_weather",
    "description": "d",
    "parameters": {"type": "object", "properties": {}},
    "strict": False,
}
CALL = (
    "I look.</think>Let me see.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n"
    '```json\n{"city": "Oslo"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>'
)


def prompt_text(stack: Any) -> str:
    text: str = stack.model.tokenizer.decode(stack.engine.generates[-1].prompt_ids, keep_control=True)
    return text


def test_text_and_reasoning(stack: Any, client: openai.OpenAI) -> None:
    stack.engine.say("hm\n</think>\n\nhello world", cached_tokens=2)
    response = client.responses.create(
        model="tiny-test", input="hello", instructions="Be brief.", temperature=0.5, max_output_tokens=99
    )
    assert response.output_text == "hello world"
    assert [item.type for item in response.output] == ["reasoning", "message"]
    assert response.output[0].content[0].text == "hm"
    assert (response.status, response.store) == ("completed", False)
    assert response.usage.input_tokens_details.cached_tokens == 2
    assert response.usage.output_tokens_details.reasoning_tokens > 0
    assert prompt_text(stack) == "<｜begin▁of▁sentence｜>Be brief.<｜User｜>hello<｜Assistant｜><think>\n"
    sampling = stack.engine.generates[0].sampling
    assert (sampling.temperature, sampling.max_tokens) == (0.5, 99)


def test_stream_builds_the_same_response(stack: Any, client: openai.OpenAI) -> None:
    stack.engine.say("hm\n</think>\n\nhello 🙂")
    events = list(client.responses.create(model="tiny-test", input="hello", stream=True))
    kinds = [event.type for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    thought = "".join(event.delta for event in events if event.type == "response.reasoning_text.delta")
    assert (text, thought) == ("hello 🙂", "hm")
    final = events[-1].response
    assert final.output_text == text
    done = [event.item for event in events if event.type == "response.output_item.done"]
    assert [item.id for item in done] == [item.id for item in final.output]
    assert kinds.count("response.content_part.added") == kinds.count("response.content_part.done") == 2


def test_the_sdks_own_stream_helper(stack: Any, client: openai.OpenAI) -> None:
    stack.engine.say(CALL)
    with client.responses.stream(model="tiny-test", input="weather?", tools=[TOOL]) as stream:
        for _ in stream:
            pass
        final = stream.get_final_response()
    assert [item.type for item in final.output] == ["reasoning", "message", "function_call"]
    assert json.loads(final.output[2].arguments) == {"city": "Oslo"}


def test_function_call_turn(stack: Any, client: openai.OpenAI) -> None:
    stack.engine.say(CALL)
    first = client.responses.create(model="tiny-test", input="weather?", tools=[TOOL])
    call = first.output[-1]
    assert (call.name, json.loads(call.arguments)) == ("get_weather", {"city": "Oslo"})
    stack.engine.say("It is sunny.")
    conversation = [
        {"role": "user", "content": [{"type": "input_text", "text": "weather?"}]},
        *(item.model_dump() for item in first.output),
        {"type": "function_call_output", "call_id": call.call_id, "output": "sun"},
    ]
    second = client.responses.create(model="tiny-test", input=conversation, tools=[TOOL])
    assert second.output_text == "It is sunny."
    text = prompt_text(stack)
    assert "<｜Assistant｜>Let me see.<｜tool▁calls▁begin｜>" in text
    assert text.endswith("<｜tool▁output▁begin｜>sun<｜tool▁output▁end｜><｜tool▁outputs▁end｜>")


def test_incomplete(stack: Any, client: openai.OpenAI) -> None:
    stack.engine.say("</think>hello world and more")
    response = client.responses.create(model="tiny-test", input="hello", max_output_tokens=3)
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert response.output[0].status == "incomplete"


def test_text_format(stack: Any, client: openai.OpenAI) -> None:
    stack.engine.say('</think>{"a": 1}')
    form = {"type": "json_schema", "name": "x", "schema": {"type": "object"}, "strict": True}
    response = client.responses.create(model="tiny-test", input="x", text={"format": form})
    assert response.output_text == '{"a": 1}'
    assert response.to_dict()["text"] == {"format": form}
    assert "answer: %json" in stack.engine.generates[0].grammar.text


def test_named_tool(stack: Any, client: openai.OpenAI) -> None:
    stack.engine.say(
        "</think><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n"
        '{"city": "Oslo"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>'
    )
    choice = {"type": "function", "name": "get_weather"}
    response = client.responses.create(model="tiny-test", input="x", tools=[TOOL], tool_choice=choice)
    assert response.output[-1].type == "function_call"
    assert "get_weather" in stack.engine.generates[0].grammar.text


def test_reasoning_effort_none(stack: Any, client: openai.OpenAI) -> None:
    stack.engine.say("hello")
    response = client.responses.create(model="tiny-test", input="x", reasoning={"effort": "none"})
    assert [item.type for item in response.output] == ["message"]
    assert prompt_text(stack).endswith("<think>\n\n</think>\n\n")


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"store": True}, "store"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
        ({"input": []}, "input"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"stream_options": {"include_obfuscation": False}}, "stream_options"),
        ({"safety_identifier": 5}, "safety_identifier"),
    ],
)
def test_refusals(stack: Any, client: openai.OpenAI, change: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as failure:
        client.responses.create(**{"model": "tiny-test", "input": "x", **change})
    assert failure.value.param == param
    assert stack.engine.generates == []
