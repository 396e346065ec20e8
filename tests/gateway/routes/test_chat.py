from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import openai
import pydantic
import pytest
from trimaran.wire import RequestFailed, SamplingParams

USER = [{"role": "user", "content": "hello"}]


def text_of(stack: Any, ids: list[int]) -> str:
    return stack.model.tokenizer.decode(ids, keep_control=True)


def test_whole_answer_splits_reasoning(stack: Any, client: openai.OpenAI) -> None:
    stack.engine.say("let me think\n</think>\n\nhello world", cached_tokens=3)
    answer = client.chat.completions.create(model="tiny-test", messages=USER)
    choice = answer.choices[0]
    assert choice.message.content == "hello world"
    assert choice.message.reasoning_content == "let me think"
    assert choice.finish_reason == "stop"
    assert answer.id.startswith("chatcmpl-")
    sent = stack.engine.generates[0]
    assert text_of(stack, sent.prompt_ids) == (
        "<｜begin▁of▁sentence｜><｜User｜>hello<｜Assistant｜><think>\n"
    )
    assert sent.stop_ids == (1,)
    assert answer.usage.prompt_tokens == len(sent.prompt_ids)
    assert answer.usage.prompt_tokens_details.cached_tokens == 3
    reasoning = len(stack.model.tokenizer.encode("let me think\n</think>"))
    assert answer.usage.completion_tokens_details.reasoning_tokens == reasoning


def test_stream_equals_whole(stack: Any, client: openai.OpenAI) -> None:
    text = "hm, 你好 🙂\n</think>\n\nhello 🙂👨‍👩‍👧 é world"
    stack.engine.say(text)
    chunks = list(
        client.chat.completions.create(
            model="tiny-test", messages=USER, stream=True, stream_options={"include_usage": True}
        )
    )
    assert len({chunk.id for chunk in chunks}) == 1
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert [delta.role for delta in deltas].count("assistant") == 1
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == "hello 🙂👨‍👩‍👧 é world"
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == "hm, 你好 🙂"
    assert not any("\ufffd" in (delta.content or "") for delta in deltas)
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == len(stack.model.tokenizer.encode(text)) + 1


def test_every_sampling_field_reaches_the_engine(stack: Any, client: openai.OpenAI) -> None:
    stack.engine.say("</think>ok")
    client.chat.completions.create(
        model="tiny-test",
        messages=USER,
        temperature=0.5,
        top_p=0.9,
        seed=-1,
        frequency_penalty=0.25,
        presence_penalty=-0.5,
        logit_bias={"5": 3},
        max_completion_tokens=77,
        logprobs=True,
        top_logprobs=2,
        extra_body={
            "top_k": 40, "min_p": 0.1, "repetition_penalty": 1.5, "min_tokens": 2, "priority": 3,
            "stop_token_ids": [9], "an_unknown_key": {"x": 1},
        },
    )  # fmt: skip
    sent = stack.engine.generates[0]
    assert sent.sampling == SamplingParams(
        temperature=0.5,
        top_p=0.9,
        seed=(1 << 63) - 1,
        frequency_penalty=0.25,
        presence_penalty=-0.5,
        logit_bias={5: 3.0},
        max_tokens=77,
        logprobs=2,
        top_k=40,
        min_p=0.1,
        repetition_penalty=1.5,
        min_tokens=2,
    )
    assert sent.priority == 3
    assert sent.stop_ids == (1, 9)
    assert sent.deadline == 3600


def test_ignore_eos(stack: Any, client: openai.OpenAI) -> None:
    stack.engine.say("</think>ok", finish="length")
    client.chat.completions.create(model="tiny-test", messages=USER, extra_body={"ignore_eos": True})
    sent = stack.engine.generates[0]
    assert sent.sampling.ignore_eos
    assert sent.stop_ids == ()
    stack.engine.say("</think>ok", finish="length")
    extra = {"ignore_eos": True, "stop_token_ids": [9]}
    client.chat.completions.create(model="tiny-test", messages=USER, extra_body=extra)
    sent = stack.engine.generates[1]
    assert not sent.sampling.ignore_eos  # it would make the engine ignore token 9 too
    assert sent.stop_ids == (9,)


def test_max_tokens_is_bounded_by_the_context(stack: Any, client: openai.OpenAI) -> None:
    for _ in range(2):
        stack.engine.say("</think>ok")
    client.chat.completions.create(model="tiny-test", messages=USER)
    client.chat.completions.create(model="tiny-test", messages=USER, max_tokens=10**6)
    for sent in stack.engine.generates:
        assert sent.sampling.max_tokens == 4096 - len(sent.prompt_ids)


@pytest.mark.parametrize("stream", [False, True])
def test_stop_string_ends_the_answer_and_the_generation(
    stack: Any, client: openai.OpenAI, stream: bool, wait_for: Callable[..., None]
) -> None:
    stack.engine.say("</think>hello wor|ld and very much more text", delay_s=0.01)
    answer = client.chat.completions.create(
        model="tiny-test", messages=USER, stop=["or|l", "zz"], stream=stream
    )
    if stream:
        chunks = list(answer)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        reason = chunks[-1].choices[0].finish_reason
    else:
        text, reason = answer.choices[0].message.content, answer.choices[0].finish_reason
    assert (text, reason) == ("hello w", "stop")
    wait_for(lambda: stack.engine.aborts == [stack.engine.generates[0].request_id])


def test_length(stack: Any, client: openai.OpenAI) -> None:
    stack.engine.say("</think>hello world and more")
    answer = client.chat.completions.create(model="tiny-test", messages=USER, max_tokens=3)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 3


def test_several_answers(stack: Any, client: openai.OpenAI) -> None:
    for text in ("one", "two", "three"):
        stack.engine.say(f"</think>{text}")
    answer = client.chat.completions.create(model="tiny-test", messages=USER, n=3, seed=5)
    assert sorted(choice.message.content for choice in answer.choices) == ["one", "three", "two"]
    assert sorted(sent.sampling.seed for sent in stack.engine.generates) == [5, 6, 7]
    assert len({sent.request_id for sent in stack.engine.generates}) == 3
    assert answer.usage.prompt_tokens == len(stack.engine.generates[0].prompt_ids)
    for text in ("one", "two"):
        stack.engine.say(f"</think>{text}")
    texts = ["", ""]
    for chunk in client.chat.completions.create(model="tiny-test", messages=USER, n=2, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert sorted(texts) == ["one", "two"]


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs(stack: Any, client: openai.OpenAI, stream: bool) -> None:
    """Of the content's tokens only: not the reasoning's, nor the line breaks between the two."""
    stack.engine.say("hm, a</think>\n\né🙂")
    answer = client.chat.completions.create(
        model="tiny-test", messages=USER, logprobs=True, top_logprobs=2, stream=stream
    )
    if stream:
        parts = [chunk.choices[0].logprobs for chunk in answer]
        content = [entry for part in parts if part for entry in part.content]
    else:
        content = answer.choices[0].logprobs.content
    assert b"".join(bytes(entry.bytes) for entry in content).decode() == "é🙂"
    assert {entry.logprob for entry in content} == {-0.25}
    assert all(len(entry.top_logprobs) == 2 for entry in content)
    assert {entry.top_logprobs[-1].logprob for entry in content} == {-9999.0}


CALLS = (
    "I look.</think><｜tool▁calls▁begin｜>"
    '<｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n{"city": "Oslo"}\n```'
    "<｜tool▁call▁end｜>\n"
    '<｜tool▁call▁begin｜>function<｜tool▁sep｜>get_time\n```json\n{"zone": "CET"}\n```<｜tool▁call▁end｜>'
    "<｜tool▁calls▁end｜>"
)
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}}}
    for name in ("get_weather", "get_time")
]


def test_tool_calls(stack: Any, client: openai.OpenAI) -> None:
    stack.engine.say(CALLS)
    choice = client.chat.completions.create(model="tiny-test", messages=USER, tools=TOOLS).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert choice.message.reasoning_content == "I look."
    calls = [(call.function.name, json.loads(call.function.arguments)) for call in choice.message.tool_calls]
    assert calls == [("get_weather", {"city": "Oslo"}), ("get_time", {"zone": "CET"})]
    prompt = text_of(stack, stack.engine.generates[0].prompt_ids)
    assert '{"name": "get_time", "parameters": {"type": "object", "properties": {}}}' in prompt


def test_tool_calls_stream(stack: Any, client: openai.OpenAI) -> None:
    stack.engine.say(CALLS)
    stream = client.chat.completions.create(model="tiny-test", messages=USER, tools=TOOLS, stream=True)
    names: dict[int, str] = {}
    ids: dict[int, str] = {}
    arguments = {0: "", 1: ""}
    reasons = []
    for chunk in stream:
        reasons.append(chunk.choices[0].finish_reason)
        for call in chunk.choices[0].delta.tool_calls or []:
            if call.id:
                assert call.index not in ids
                ids[call.index], names[call.index] = call.id, call.function.name
            arguments[call.index] += call.function.arguments
    assert names == {0: "get_weather", 1: "get_time"}
    assert [json.loads(text) for text in arguments.values()] == [{"city": "Oslo"}, {"zone": "CET"}]
    assert reasons[-1] == "tool_calls"


def test_one_call_without_parallel_calls(
    stack: Any, client: openai.OpenAI, wait_for: Callable[..., None]
) -> None:
    stack.engine.say(CALLS, delay_s=0.002)
    answer = client.chat.completions.create(
        model="tiny-test", messages=USER, tools=TOOLS, parallel_tool_calls=False
    )
    assert len(answer.choices[0].message.tool_calls) == 1
    assert answer.choices[0].finish_reason == "tool_calls"
    wait_for(lambda: len(stack.engine.aborts) == 1)


def test_named_tool_is_forced(stack: Any, client: openai.OpenAI) -> None:
    stack.engine.say(
        "hm</think>\n\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n"
        '{"city": "Oslo"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>'
    )
    choice = {"type": "function", "function": {"name": "get_weather"}}
    answer = client.chat.completions.create(model="tiny-test", messages=USER, tools=TOOLS, tool_choice=choice)
    message = answer.choices[0].message
    call = message.tool_calls[0]
    assert (call.function.name, call.function.arguments) == ("get_weather", '{"city": "Oslo"}')
    assert message.reasoning_content == "hm"
    assert answer.choices[0].finish_reason == "tool_calls"
    grammar = stack.engine.generates[0].grammar.text
    assert "get_weather" in grammar
    assert "get_time" not in grammar


def test_some_tool_is_forced(stack: Any, client: openai.OpenAI) -> None:
    stack.engine.say(CALLS)
    client.chat.completions.create(model="tiny-test", messages=USER, tools=TOOLS, tool_choice="required")
    grammar = stack.engine.generates[0].grammar.text
    assert "get_weather" in grammar
    assert "get_time" in grammar
    assert "TEXT calls" not in grammar


def test_free_answers_have_no_grammar(stack: Any, client: openai.OpenAI) -> None:
    stack.engine.say("</think>no")
    client.chat.completions.create(
        model="tiny-test", messages=USER, tools=TOOLS, response_format={"type": "text"}
    )
    assert stack.engine.generates[0].grammar is None


def test_strict_tools_are_constrained_if_called(stack: Any, client: openai.OpenAI) -> None:
    stack.engine.say("</think>no")
    strict = [{"type": "function", "function": {**tool["function"], "strict": True}} for tool in TOOLS]
    client.chat.completions.create(model="tiny-test", messages=USER, tools=strict)
    assert "TEXT calls?" in stack.engine.generates[0].grammar.text


class Person(pydantic.BaseModel):
    name: str
    age: int


def test_pydantic_models_are_schemas(stack: Any, client: openai.OpenAI) -> None:
    stack.engine.say('hm</think>\n\n{"name": "Ada", "age": 36}')
    answer = client.chat.completions.parse(model="tiny-test", messages=USER, response_format=Person)
    assert answer.choices[0].message.parsed == Person(name="Ada", age=36)
    grammar = stack.engine.generates[0].grammar.text
    assert '"age"' in grammar
    assert "lenient" not in grammar


def test_a_bad_schema_is_the_clients(stack: Any, client: openai.OpenAI) -> None:
    problem = RequestFailed(
        request_id="", code="invalid_request", message="grammar: Invalid type", param="grammar"
    )
    for stream in (False, True):
        stack.engine.say("", failure=problem)
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "strange"}}}
        with pytest.raises(openai.BadRequestError) as failure:
            client.chat.completions.create(
                model="tiny-test", messages=USER, response_format=form, stream=stream
            )
        assert failure.value.param == "response_format.json_schema.schema"
        assert failure.value.code == "invalid_schema"
        assert "response_format.json_schema.schema: Invalid type" in str(failure.value)


def test_tool_choice_none_offers_nothing(stack: Any, client: openai.OpenAI) -> None:
    stack.engine.say("</think>no")
    client.chat.completions.create(model="tiny-test", messages=USER, tools=TOOLS, tool_choice="none")
    assert "get_time" not in text_of(stack, stack.engine.generates[0].prompt_ids)


def test_the_whole_tool_turn(stack: Any, client: openai.OpenAI) -> None:
    stack.engine.say("It is sunny.")
    call = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}
    messages = [
        {
            "role": "developer",
            "content": [{"type": "text", "text": "Be"}, {"type": "text", "text": " brief."}],
        },
        *USER,
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    ]
    answer = client.chat.completions.create(model="tiny-test", messages=messages)
    assert answer.choices[0].message.content == "It is sunny."
    assert not hasattr(answer.choices[0].message, "reasoning_content")
    prompt = text_of(stack, stack.engine.generates[0].prompt_ids)
    assert prompt.startswith(
        "<｜begin▁of▁sentence｜>Be brief.<｜User｜>hello<｜Assistant｜><｜tool▁calls▁begin｜>"
    )


@pytest.mark.parametrize(
    "extra", [{"reasoning_effort": "none"}, {"chat_template_kwargs": {"enable_thinking": False}}]
)
def test_reasoning_can_be_switched_off(stack: Any, client: openai.OpenAI, extra: dict[str, Any]) -> None:
    stack.engine.say("hello")
    answer = client.chat.completions.create(model="tiny-test", messages=USER, extra_body=extra)
    assert answer.choices[0].message.content == "hello"
    assert text_of(stack, stack.engine.generates[0].prompt_ids).endswith("<think>\n\n</think>\n\n")


def test_continue_final_message(stack: Any, client: openai.OpenAI) -> None:
    stack.engine.say(" world")
    messages = [*USER, {"role": "assistant", "content": "hello"}]
    answer = client.chat.completions.create(
        model="tiny-test", messages=messages, extra_body={"continue_final_message": True}
    )
    assert answer.choices[0].message.content == " world"
    assert text_of(stack, stack.engine.generates[0].prompt_ids).endswith("<｜Assistant｜>hello")


def test_continuous_usage(stack: Any, client: openai.OpenAI) -> None:
    stack.engine.say("</think>hello world")
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = list(
        client.chat.completions.create(model="tiny-test", messages=USER, stream=True, stream_options=options)
    )
    counts = [chunk.usage.completion_tokens for chunk in chunks if chunk.usage]
    assert counts == sorted(counts)
    assert len(counts) > 3
