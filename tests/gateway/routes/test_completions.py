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
    tokens = [token for part in parts for token in part.tokens]
    assert "".join(tokens) == "hello world" + vocabulary_text(stack, 1), "the token that ended it too"
    offsets = [offset for part in parts for offset in part.text_offset]
    assert offsets[0] == 0
    assert offsets == sorted(offsets)
    assert all(len(top) == 3 for part in parts for top in part.top_logprobs), "two, and the token itself"


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


@pytest.mark.parametrize("stream", [False, True])
def test_echo_tells_the_probabilities_of_the_prompt(stack: Any, client: openai.OpenAI, stream: bool) -> None:
    """As lm-eval scores a continuation: entries of the prompt, the first one null, then of the answer."""
    stack.engine.say(" 🙂", batch=3)
    prompt = stack.model.tokenizer.encode("hello 🙂 world")
    answer = client.completions.create(
        model="tiny-test", prompt=prompt, max_tokens=2, logprobs=1, echo=True, stream=stream
    )
    choices = [chunk.choices[0] for chunk in answer] if stream else [answer.choices[0]]
    assert "".join(choice.text for choice in choices) == "hello 🙂 world \ufffd"
    parts = [choice.logprobs for choice in choices if choice.logprobs]
    told = {
        name: [item for part in parts for item in getattr(part, name)]
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    }
    scores = [None, *(-float(position) for position in range(1, len(prompt)))]
    assert told["token_logprobs"] == [*scores, -0.25, -0.25]
    assert told["tokens"] == ["hello", " ", *(f"bytes:\\x{byte:02x}" for byte in "🙂".encode()), " wor", "l",
                              "d", " ", "bytes:\\xf0"]  # fmt: skip
    assert told["top_logprobs"][0] is None
    vocabulary = stack.model.tokenizer.vocabulary
    assert told["top_logprobs"][1] == {vocabulary.token_bytes(10).decode(): -0.5, " ": -1.0}
    text = "hello 🙂 world "
    assert told["text_offset"] == [0, 5, 6, 6, 6, 6, 7, 11, 12, 13, 14]
    assert all(text[told["text_offset"][index] :].startswith(told["tokens"][index]) for index in (0, 1, 6, 9))


def test_the_token_that_ends_a_text_has_a_probability_too(stack: Any, client: openai.OpenAI) -> None:
    stack.engine.say("")
    answer = client.completions.create(model="tiny-test", prompt="hello", max_tokens=1, logprobs=0, echo=True)
    choice = answer.choices[0]
    assert (choice.text, choice.finish_reason) == ("hello", "stop")
    assert choice.logprobs.tokens == [vocabulary_text(stack, 0), "hello", vocabulary_text(stack, 1)]
    assert choice.logprobs.token_logprobs == [None, -1.0, -0.25]
    assert choice.logprobs.text_offset == [0, 0, 5]


def vocabulary_text(stack: Any, token: int) -> str:
    return stack.model.tokenizer.vocabulary.tokens[token]


def test_no_token_wanted_reads_the_prompt_only(stack: Any, client: openai.OpenAI) -> None:
    stack.engine.say("x")
    answer = client.completions.create(model="tiny-test", prompt="hello", max_tokens=0, logprobs=1, echo=True)
    assert answer.choices[0].text == "hello"
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].logprobs.token_logprobs == [None, -1.0]
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (2, 0)
    assert stack.engine.generates[0].sampling.max_tokens == 1, "what the engine does at least"


def test_prompt_logprobs_by_token_id(stack: Any, client: openai.OpenAI) -> None:
    stack.engine.say("x")
    answer = client.completions.create(
        model="tiny-test", prompt=[10, 11, 200], extra_body={"prompt_logprobs": 1}
    )
    first, second, third = answer.choices[0].prompt_logprobs
    assert first is None
    likeliest = {"logprob": -0.5, "rank": 1, "decoded_token": stack.model.tokenizer.decode([10])}
    assert second["10"] == third["10"] == likeliest
    assert second["11"]["logprob"] == -1.0
    assert second["11"]["rank"] is None
    assert third["200"]["logprob"] == -2.0
    assert "logprobs" not in answer.choices[0].model_fields_set or answer.choices[0].logprobs is None


def test_an_engine_that_leaves_them_out_is_at_fault(stack: Any, client: openai.OpenAI) -> None:
    stack.engine.say("x", scores_prompt=False)
    with pytest.raises(openai.InternalServerError):
        client.completions.create(model="tiny-test", prompt="hello", logprobs=1, echo=True)


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
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
