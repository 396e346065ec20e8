from __future__ import annotations

from typing import Any

import httpx
import pytest

USER = [{"role": "user", "content": "hello"}]


def post(stack: Any, path: str, body: dict[str, Any]) -> Any:
    return httpx.post(stack.url + path, json=body, timeout=20)


def test_tokenize_as_llama_cpp(stack: Any) -> None:
    tokenizer = stack.model.tokenizer
    plain = post(stack, "/tokenize", {"content": "hello<think>"}).json()
    assert plain == {"tokens": tokenizer.encode("hello<think>")}
    special = post(
        stack, "/tokenize", {"content": "hello<think>", "add_special": True, "parse_special": False}
    )
    assert special.json() == {"tokens": tokenizer.encode("hello<think>", add_bos=True, parse_added=False)}
    pieces = post(stack, "/tokenize", {"content": "hello é", "with_pieces": True}).json()["tokens"]
    assert [piece["piece"] for piece in pieces] == ["hello", " ", [0xC3], [0xA9]]


def test_tokenize_as_vllm(stack: Any) -> None:
    body = post(stack, "/tokenize", {"prompt": "hello", "return_token_strs": True}).json()
    assert body["tokens"] == stack.model.tokenizer.encode("hello", add_bos=True)
    assert body["count"] == len(body["tokens"])
    assert body["max_model_len"] == 4096
    assert body["token_strs"] == ["<｜begin▁of▁sentence｜>", "hello"]
    chat = post(stack, "/tokenize", {"model": "tiny-test", "messages": USER}).json()
    text = stack.model.tokenizer.decode(chat["tokens"], keep_control=True)
    assert text == "<｜begin▁of▁sentence｜><｜User｜>hello<｜Assistant｜><think>\n"


def test_detokenize(stack: Any) -> None:
    ids = stack.model.tokenizer.encode("<｜User｜>hello 🙂")
    assert post(stack, "/detokenize", {"tokens": ids}).json() == {
        "content": "<｜User｜>hello 🙂",
        "prompt": "<｜User｜>hello 🙂",
    }
    assert post(stack, "/detokenize", {"tokens": [10**6]}).status_code == 400
    assert post(stack, "/detokenize", {"tokens": [-1]}).json()["error"]["param"] == "tokens[0]"


@pytest.mark.parametrize("body", [{}, {"content": "a", "prompt": "b"}])
def test_tokenize_needs_one_text(stack: Any, body: dict[str, str]) -> None:
    assert post(stack, "/tokenize", body).status_code == 400


def test_apply_template_shows_the_prompt(stack: Any) -> None:
    body = {"messages": USER, "chat_template_kwargs": {"enable_thinking": False}}
    text = post(stack, "/apply-template", body).json()["prompt"]
    assert text == "<｜begin▁of▁sentence｜><｜User｜>hello<｜Assistant｜><think>\n\n</think>\n\n"


def test_props(stack: Any, r1_template: str) -> None:
    body = httpx.get(stack.url + "/props").json()
    assert body["default_generation_settings"]["n_ctx"] == 4096
    assert body["chat_template"] == r1_template
    assert (body["bos_token"], body["eos_token"]) == ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>")


def test_embeddings_are_501(stack: Any) -> None:
    response = post(stack, "/v1/embeddings", {"input": "x"})
    assert response.status_code == 501
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
