from __future__ import annotations

import itertools
import json
from typing import Any

import httpx
import pytest
from trimaran.wire import RequestFailed
from trimaran_gateway.answers.anthropic import thinking_signature

BASE = {"model": "tiny-test", "max_tokens": 2000, "messages": [{"role": "user", "content": "hello"}]}
TOOL = {"name": "get_weather", "description": "d", "input_schema": {"type": "object", "properties": {}}}
CALL = (
    "I look.</think>Let me see.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n"
    '```json\n{"city": "Oslo"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>'
)
THINK = {"thinking": {"type": "enabled", "budget_tokens": 1024}}


def post(stack: Any, path: str = "/v1/messages", **change: Any) -> httpx.Response:
    return httpx.post(stack.url + path, json={**BASE, **change}, timeout=20)


def events(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.headers["content-type"].startswith("text/event-stream")
    found = []
    for block in response.text.strip().split("\n\n"):
        name, data = block.split("\n")
        value = json.loads(data.removeprefix("data: "))
        assert name == f"event: {value['type']}"
        found.append(value)
    return found


def prompt_text(stack: Any) -> str:
    text: str = stack.model.tokenizer.decode(stack.engine.generates[-1].prompt_ids, keep_control=True)
    return text


def test_whole_message(stack: Any) -> None:
    stack.engine.say("hm\n</think>\n\nhello world", cached_tokens=2)
    body = post(stack, **THINK).json()
    assert body["content"] == [
        {"type": "thinking", "thinking": "hm", "signature": thinking_signature("hm")},
        {"type": "text", "text": "hello world"},
    ]
    assert (body["type"], body["role"], body["stop_reason"], body["stop_sequence"]) == (
        "message", "assistant", "end_turn", None,
    )  # fmt: skip
    length = len(stack.engine.generates[0].prompt_ids)
    assert body["usage"]["input_tokens"] == length - 2
    assert body["usage"]["cache_read_input_tokens"] == 2
    assert stack.engine.generates[0].sampling.max_tokens == 2000


def test_reasoning_is_shown_only_on_request(stack: Any) -> None:
    stack.engine.say("hm\n</think>\n\nhello")
    assert post(stack).json()["content"] == [{"type": "text", "text": "hello"}]
    stack.engine.say("hello")
    assert post(stack, thinking={"type": "disabled"}).json()["content"] == [{"type": "text", "text": "hello"}]
    assert prompt_text(stack).endswith("<think>\n\n</think>\n\n")


def test_stream(stack: Any) -> None:
    stack.engine.say("hm\n</think>\n\nhello 🙂")
    found = events(post(stack, stream=True, **THINK))
    kinds = [value["type"] for value in found]
    assert kinds[0] == "message_start"
    assert kinds[-2:] == ["message_delta", "message_stop"]
    starts = [value["content_block"]["type"] for value in found if value["type"] == "content_block_start"]
    assert starts == ["thinking", "text"]
    assert kinds.count("content_block_stop") == 2
    deltas = [value["delta"] for value in found if value["type"] == "content_block_delta"]
    signed = [delta for delta in deltas if delta["type"] == "signature_delta"]
    assert signed == [{"type": "signature_delta", "signature": thinking_signature("hm")}]
    order = [kind for kind, _ in itertools.groupby(delta["type"] for delta in deltas)]
    assert order == ["thinking_delta", "signature_delta", "text_delta"]
    texts = {"thinking": "", "text": ""}
    for value in found:
        if value["type"] == "content_block_delta" and value["delta"] not in signed:
            kind = value["delta"]["type"].removesuffix("_delta")
            texts[kind] += value["delta"][kind]
            assert value["index"] == ["thinking", "text"].index(kind)
    assert texts == {"thinking": "hm", "text": "hello 🙂"}
    assert found[-2]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert found[-2]["usage"]["output_tokens"] > 3


def test_stop_sequences(stack: Any) -> None:
    stack.engine.say("</think>hello END more")
    body = post(stack, stop_sequences=["END"]).json()
    assert (body["stop_reason"], body["stop_sequence"]) == ("stop_sequence", "END")
    assert body["content"][0]["text"] == "hello "


def test_max_tokens(stack: Any) -> None:
    stack.engine.say("</think>hello world and more")
    assert post(stack, max_tokens=3).json()["stop_reason"] == "max_tokens"


def test_tool_use(stack: Any) -> None:
    stack.engine.say(CALL)
    body = post(stack, tools=[TOOL]).json()
    text, call = body["content"]
    assert text == {"type": "text", "text": "Let me see."}
    assert (call["name"], call["input"]) == ("get_weather", {"city": "Oslo"})
    assert call["id"].startswith("toolu_")
    assert body["stop_reason"] == "tool_use"
    assert '"name": "get_weather", "description": "d", "parameters"' in prompt_text(stack)


def test_tool_use_stream(stack: Any) -> None:
    stack.engine.say(CALL)
    found = events(post(stack, tools=[TOOL], stream=True))
    start = next(value for value in found if value.get("content_block", {}).get("type") == "tool_use")
    assert start["index"] == 1
    fragments = [value["delta"].get("partial_json", "") for value in found if "partial_json" in str(value)]
    assert json.loads("".join(fragments)) == {"city": "Oslo"}
    assert found[-2]["delta"]["stop_reason"] == "tool_use"


def test_forced_tool(stack: Any) -> None:
    stack.engine.say(CALL)
    body = post(stack, tools=[TOOL], tool_choice={"type": "any", "disable_parallel_tool_use": True}).json()
    assert body["content"][-1]["input"] == {"city": "Oslo"}
    assert "get_weather" in stack.engine.generates[0].grammar.text


@pytest.mark.parametrize(
    "nest", [lambda form: {"output_format": form}, lambda form: {"output_config": {"format": form}}]
)
def test_output_format(stack: Any, nest: Any) -> None:
    stack.engine.say('</think>{"a": 1}')
    form = {"type": "json_schema", "schema": {"type": "object", "properties": {"a": {"type": "integer"}}}}
    body = post(stack, **nest(form)).json()
    assert body["content"][-1]["text"] == '{"a": 1}'
    assert "answer: %json" in stack.engine.generates[0].grammar.text


def test_tool_results_and_system(stack: Any) -> None:
    stack.engine.say("It is sunny.")
    conversation = [
        {
            "role": "user",
            "content": [{"type": "text", "text": "weather?", "cache_control": {"type": "ephemeral"}}],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": ""},
                {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Oslo"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "toolu_1",
                    "content": [{"type": "text", "text": "sun"}],
                }
            ],
        },
    ]
    response = post(
        stack, messages=conversation, system=[{"type": "text", "text": "Be brief."}], tools=[TOOL]
    )
    assert response.json()["content"] == [{"type": "text", "text": "It is sunny."}]
    text = prompt_text(stack)
    assert text.startswith("<｜begin▁of▁sentence｜>Be brief.\n\n## Tools\n")
    assert 'get_weather\n```json\n{"city": "Oslo"}\n```' in text
    assert text.endswith("<｜tool▁output▁begin｜>sun<｜tool▁output▁end｜><｜tool▁outputs▁end｜>")


def test_a_budget_of_thinking_reaches_the_engine(stack: Any) -> None:
    stack.engine.say("hm</think>hello")
    assert post(stack, **THINK).status_code == 200
    assert "thought[max_tokens=1024]: TEXT\n" in stack.engine.generates[0].grammar.text


def test_a_failed_tool_is_told_so(stack: Any) -> None:
    stack.engine.say("Oh.")
    use = {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "no network", "is_error": True}
    conversation = [
        *BASE["messages"],
        {"role": "assistant", "content": [use]},
        {"role": "user", "content": [result]},
    ]
    assert post(stack, messages=conversation, tools=[TOOL]).status_code == 200
    assert "<｜tool▁output▁begin｜>Error: no network<｜tool▁output▁end｜>" in prompt_text(stack)


def test_prefill(stack: Any) -> None:
    stack.engine.say(" world")
    conversation = [*BASE["messages"], {"role": "assistant", "content": "hello"}]
    assert post(stack, messages=conversation).json()["content"][0]["text"] == " world"
    assert prompt_text(stack).endswith("<｜Assistant｜>hello")


def test_count_tokens(stack: Any) -> None:
    stack.engine.say("</think>x")
    post(stack, tools=[TOOL])
    body = {key: value for key, value in BASE.items() if key != "max_tokens"}
    response = httpx.post(stack.url + "/v1/messages/count_tokens", json={**body, "tools": [TOOL]})
    assert response.json() == {"input_tokens": len(stack.engine.generates[0].prompt_ids)}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"temperature": 1.5}, "temperature"),
        ({"top_k": 1 << 64}, "top_k"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages[0].content[0]"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tool_choice": {"type": "tool", "name": "x"}}, "tool_choice"),
        ({"mcp_servers": [{}]}, "mcp_servers"),
        ({"context_management": {"edits": []}}, "context_management"),
        ({"metadata": {"user_id": 5}}, "metadata.user_id"),
        ({"service_tier": "fast"}, "service_tier"),
        ({"output_config": {"effort": "huge"}}, "output_config.effort"),
        ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, "less than max_tokens 2000"),
        ({"thinking": {"type": "adaptive", "budget_tokens": 1024}}, "thinking.budget_tokens"),
    ],
)
def test_refusals_have_anthropics_envelope(stack: Any, change: dict[str, Any], word: str) -> None:
    response = post(stack, **change)
    assert response.status_code == 400
    body = response.json()
    assert (body["type"], body["error"]["type"]) == ("error", "invalid_request_error")
    assert word in body["error"]["message"]
    assert stack.engine.generates == []


def test_overload(stack: Any) -> None:
    stack.engine.say("x", failure=RequestFailed(request_id="", code="overloaded", message="full"))
    response = post(stack, stream=True)
    assert response.status_code == 503
    assert response.json()["error"] == {"type": "overloaded_error", "message": "full"}


def test_official_client(stack: Any) -> None:
    anthropic = pytest.importorskip("anthropic")
    with anthropic.Anthropic(base_url=stack.url, api_key="x", max_retries=0, timeout=20) as client:
        stack.engine.say("hm</think>hello world")
        message = client.messages.create(**BASE, **THINK)
        assert [block.type for block in message.content] == ["thinking", "text"]
        stack.engine.say(CALL)
        with client.messages.stream(**BASE, tools=[TOOL]) as stream:
            text = "".join(stream.text_stream)
            final = stream.get_final_message()
        assert text == "Let me see."
        assert final.content[-1].input == {"city": "Oslo"}
        assert final.stop_reason == "tool_use"
        counted = client.messages.count_tokens(model="tiny-test", messages=BASE["messages"])
        assert counted.input_tokens > 3
        with pytest.raises(anthropic.NotFoundError):
            client.messages.create(**{**BASE, "model": "claude"})


@pytest.mark.parametrize("is_streamed", [False, True])
def test_thinking_goes_around_by_the_official_client(stack: Any, is_streamed: bool) -> None:
    """Thinking that comes before a call is handed back, as it was received, with the call's result."""
    anthropic = pytest.importorskip("anthropic")
    options = {**BASE, **THINK, "tools": [TOOL]}
    with anthropic.Anthropic(base_url=stack.url, api_key="x", max_retries=0, timeout=20) as client:
        stack.engine.say(CALL)
        if is_streamed:
            with client.messages.stream(**options) as stream:
                kinds = [event.type for event in stream]
                message = stream.get_final_message()
            assert kinds.count("signature") == 1
        else:
            message = client.messages.create(**options)
        assert [block.type for block in message.content] == ["thinking", "text", "tool_use"]
        thought = message.content[0]
        assert (thought.thinking, thought.signature) == ("I look.", thinking_signature("I look."))
        assert len(thought.signature) == 44
        result = {"type": "tool_result", "tool_use_id": message.content[-1].id, "content": "sun"}
        turns = [
            *BASE["messages"],
            {"role": "assistant", "content": message.content},
            {"role": "user", "content": [result]},
        ]
        stack.engine.say("It is sunny.")
        final = client.messages.create(**{**options, "messages": turns})
    assert final.content[-1].text == "It is sunny."
    text = prompt_text(stack)
    assert "Let me see.<｜tool▁calls▁begin｜>" in text
    assert text.endswith("<｜tool▁output▁begin｜>sun<｜tool▁output▁end｜><｜tool▁outputs▁end｜>")
