from __future__ import annotations

from typing import Any

import openai

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
