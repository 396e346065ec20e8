from __future__ import annotations

from typing import Any

import openai
import pytest


def test_text_is_continued(stack: Any, client: openai.OpenAI) -> None:
    stack.engine.say(" world<think>")
    answer = client.completions.create(model="tiny-test", prompt="hello", max_tokens=9)
    assert answer.choices[0].text == " world<think>"
    assert answer.choices[0].finish_reason == "stop"
    sent = stack.engine.generates[0]
    assert sent.prompt_ids == stack.model.tokenizer.encode("hello", add_bos=True)
    assert sent.sampling.max_tokens == 9


def test_sixteen_tokens_by_default(stack: Any, client: openai.OpenAI) -> None:
    stack.engine.say("x" * 30)
    answer = client.completions.create(model="tiny-test", prompt="hello")
    assert answer.choices[0].text == "x" * 16
    assert answer.choices[0].finish_reason == "length"


def test_several_prompts_with_several_answers(stack: Any, client: openai.OpenAI) -> None:
    for text in "abcd":
        stack.engine.say(text)
    answer = client.completions.create(model="tiny-test", prompt=["hello", "world, hello"], n=2, echo=True)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert [choice.text[:-1] for choice in answer.choices] == ["hello"] * 2 + ["world, hello"] * 2
    lengths = {len(sent.prompt_ids) for sent in stack.engine.generates}
    assert answer.usage.prompt_tokens == sum(lengths)


@pytest.mark.parametrize("prompt", [[3, 4, 5], [[3, 4, 5]]])
def test_token_ids_are_taken_as_they_are(stack: Any, client: openai.OpenAI, prompt: Any) -> None:
    stack.engine.say("x")
    client.completions.create(model="tiny-test", prompt=prompt)
    assert stack.engine.generates[0].prompt_ids == [3, 4, 5]


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs(stack: Any, client: openai.OpenAI, stream: bool) -> None:
    stack.engine.say("hello world")
    answer = client.completions.create(model="tiny-test", prompt="a", logprobs=2, stream=stream)
    parts = [chunk.choices[0].logprobs for chunk in answer] if stream else [answer.choices[0].logprobs]
    parts = [part for part in parts if part]
    assert "".join(token for part in parts for token in part.tokens) == "hello world"
    offsets = [offset for part in parts for offset in part.text_offset]
    assert offsets[0] == 0
    assert offsets == sorted(offsets)
    assert all(len(top) == 2 for part in parts for top in part.top_logprobs)


def test_stream(stack: Any, client: openai.OpenAI) -> None:
    stack.engine.say(" 🙂 world STOP more")
    chunks = list(
        client.completions.create(
            model="tiny-test",
            prompt="hello",
            echo=True,
            stop="STOP",
            stream=True,
            max_tokens=50,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == "hello 🙂 world "
    assert chunks[-1].usage.completion_tokens > 5


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"prompt": [9999]}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"guided_json": {}}, "guided_json"),
    ],
)
def test_refusals_name_the_field(
    stack: Any, client: openai.OpenAI, extra: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as failure:
        client.completions.create(model="tiny-test", prompt="x", extra_body=extra)
    assert failure.value.param == param
    assert stack.engine.generates == []


def test_response_format(stack: Any, client: openai.OpenAI) -> None:
    stack.engine.say('{"a": 1}')
    form = {"type": "json_schema", "json_schema": {"schema": {"type": "object"}, "strict": False}}
    answer = client.completions.create(
        model="tiny-test", prompt="hello", max_tokens=100, extra_body={"response_format": form}
    )
    assert answer.choices[0].text == '{"a": 1}'
    grammar = stack.engine.generates[0].grammar.text
    assert grammar.startswith("start: %json")
    assert "lenient" in grammar
