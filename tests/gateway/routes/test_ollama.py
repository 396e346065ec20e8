from __future__ import annotations

import contextlib
import json
from typing import Any

import httpx
import pytest

CHAT = {"model": "tiny-test", "messages": [{"role": "user", "content": "hello"}]}
TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}]
CALL = (
    "I look.</think><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n"
    '```json\n{"city": "Oslo"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>'
)


def post(stack: Any, path: str, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(stack.url + path, json=body, timeout=20)


def lines(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in response.text.splitlines()]


def prompt_text(stack: Any) -> str:
    text: str = stack.model.tokenizer.decode(stack.engine.generates[-1].prompt_ids, keep_control=True)
    return text


def test_chat_streams_by_default(stack: Any) -> None:
    stack.engine.say("hm\n</think>\n\nhello 🙂")
    parts = lines(post(stack, "/api/chat", CHAT))
    assert "".join(part["message"]["content"] for part in parts) == "hello 🙂"
    assert "".join(part["message"].get("thinking", "") for part in parts) == "hm"
    assert [part["done"] for part in parts] == [False] * (len(parts) - 1) + [True]
    last = parts[-1]
    assert last["done_reason"] == "stop"
    assert last["prompt_eval_count"] == len(stack.engine.generates[0].prompt_ids)
    assert last["eval_count"] == len(stack.model.tokenizer.encode("hm\n</think>\n\nhello 🙂")) + 1
    assert last["total_duration"] >= last["eval_duration"] >= 0
    assert last["created_at"].endswith("Z")


def test_chat_whole(stack: Any) -> None:
    stack.engine.say("hm</think>hello", finish="length")
    body = post(stack, "/api/chat", {**CHAT, "stream": False}).json()
    assert body["message"] == {"role": "assistant", "content": "hello", "thinking": "hm"}
    assert (body["done"], body["done_reason"]) == (True, "length")


def test_options_reach_the_engine(stack: Any) -> None:
    stack.engine.say("</think>a STOP b")
    options = {
        "temperature": 0, "top_k": 3, "top_p": 0.5, "min_p": 0.1, "seed": 4, "num_predict": 50,
        "num_ctx": 2048, "stop": ["STOP"], "repeat_penalty": 1.2, "repeat_last_n": -1,
        "presence_penalty": 0.5, "num_gpu": 1,
    }  # fmt: skip
    body = post(stack, "/api/chat", {**CHAT, "stream": False, "options": options, "keep_alive": "5m"}).json()
    assert body["message"]["content"] == "a "
    sampling = stack.engine.generates[0].sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p) == (0, 3, 0.5, 0.1)
    assert (sampling.seed, sampling.max_tokens, sampling.repetition_penalty) == (4, 50, 1.2)
    assert sampling.presence_penalty == 0.5


def test_ollamas_defaults(stack: Any) -> None:
    stack.engine.say("</think>a")
    post(stack, "/api/chat", {**CHAT, "model": "tiny-test:latest"})
    sampling = stack.engine.generates[0].sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.8, 40, 0.9)


@pytest.mark.parametrize("stream", [False, True])
def test_tool_calls_are_objects(stack: Any, stream: bool) -> None:
    stack.engine.say(CALL)
    response = post(stack, "/api/chat", {**CHAT, "tools": TOOLS, "stream": stream})
    parts = lines(response) if stream else [response.json()]
    calls = [call for part in parts for call in part["message"].get("tool_calls", [])]
    assert calls == [{"function": {"name": "get_weather", "arguments": {"city": "Oslo"}}}]
    assert parts[-1]["done_reason"] == "stop"


def test_a_call_without_json_is_an_error(stack: Any) -> None:
    stack.engine.say(CALL.replace('"Oslo"}', ""))
    parts = lines(post(stack, "/api/chat", {**CHAT, "tools": TOOLS}))
    assert "no JSON object" in parts[-1]["error"]


def test_tool_turn(stack: Any) -> None:
    stack.engine.say("sunny")
    messages = [
        *CHAT["messages"],
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"function": {"name": "get_weather", "arguments": {"city": "Oslo"}}}],
        },
        {"role": "tool", "tool_name": "get_weather", "content": "sun"},
    ]
    assert post(stack, "/api/chat", {**CHAT, "messages": messages, "stream": False}).status_code == 200
    assert 'get_weather\n```json\n{"city": "Oslo"}\n```' in prompt_text(stack)


def test_think_false(stack: Any) -> None:
    stack.engine.say("hello")
    body = post(stack, "/api/chat", {**CHAT, "stream": False, "think": False}).json()
    assert body["message"] == {"role": "assistant", "content": "hello"}
    assert prompt_text(stack).endswith("<think>\n\n</think>\n\n")


def test_generate_with_context(stack: Any) -> None:
    stack.engine.say("</think>hello")
    first = post(
        stack, "/api/generate", {"model": "tiny-test", "prompt": "hi", "system": "S", "stream": False}
    ).json()
    assert first["response"] == "hello"
    assert prompt_text(stack) == "<｜begin▁of▁sentence｜>S<｜User｜>hi<｜Assistant｜><think>\n"
    stack.engine.say("</think>again")
    parts = lines(
        post(stack, "/api/generate", {"model": "tiny-test", "prompt": "more", "context": first["context"]})
    )
    assert "".join(part["response"] for part in parts) == "again"
    text = prompt_text(stack)
    assert text.startswith(
        "<｜begin▁of▁sentence｜>S<｜User｜>hi<｜Assistant｜><think>\n</think>hello<｜end▁of▁sentence｜>"
    )
    assert text.endswith("<｜User｜>more<｜Assistant｜><think>\n")
    assert text.count("<｜begin▁of▁sentence｜>") == 1


def test_generate_raw(stack: Any) -> None:
    stack.engine.say(" world<think>")
    body = {"model": "tiny-test", "prompt": "hello", "raw": True, "stream": False}
    assert post(stack, "/api/generate", body).json()["response"] == " world<think>"
    assert prompt_text(stack) == "<｜begin▁of▁sentence｜>hello"


def test_empty_requests_load_and_unload(stack: Any) -> None:
    loaded = lines(post(stack, "/api/generate", {"model": "tiny-test"}))
    assert [(part["done"], part["done_reason"]) for part in loaded] == [(True, "load")]
    body = {"model": "tiny-test", "messages": [], "keep_alive": 0, "stream": False}
    assert post(stack, "/api/chat", body).json()["done_reason"] == "unload"
    assert stack.engine.generates == []


@pytest.mark.parametrize(
    ("path", "change", "word"),
    [
        ("/api/chat", {"format": "yaml"}, "format"),
        ("/api/chat", {"options": {"temperature": "hot"}}, "options.temperature"),
        ("/api/chat", {"options": {"top_k": 1 << 64}}, "options.top_k"),
        ("/api/chat", {"options": {"mirostat": 2}}, "options.mirostat"),
        ("/api/chat", {"options": {"num_ctx": 10**6}}, "options.num_ctx"),
        ("/api/chat", {"options": {"num_predict": 0}}, "options.num_predict"),
        ("/api/chat", {"options": {"repeat_penalty": 3e-38}}, "options.repeat_penalty"),
        ("/api/chat", {"options": {"repeat_penalty": 2, "repeat_last_n": 64}}, "repeat_last_n"),
        (
            "/api/chat",
            {"messages": [{"role": "user", "content": "x", "images": ["aaaa"]}]},
            "messages[0].images",
        ),
        ("/api/generate", {"prompt": "x", "images": ["aaaa"]}, "images"),
        ("/api/generate", {"prompt": "x", "suffix": "y"}, "suffix"),
        ("/api/generate", {"prompt": "x", "template": "y"}, "template"),
        ("/api/generate", {"prompt": "x", "raw": True, "system": "s"}, "raw"),
        ("/api/generate", {"prompt": "x", "context": [10**6]}, "context"),
    ],
)
def test_refusals(stack: Any, path: str, change: dict[str, Any], word: str) -> None:
    base = CHAT if path == "/api/chat" else {"model": "tiny-test"}
    response = post(stack, path, {**base, **change})
    assert response.status_code == 400
    assert list(response.json()) == ["error"]
    assert word in response.json()["error"]


def test_unknown_model(stack: Any) -> None:
    response = post(stack, "/api/chat", {**CHAT, "model": "llama3"})
    assert response.status_code == 404
    assert "llama3" in response.json()["error"]


def test_model_lists(stack: Any) -> None:
    card = httpx.get(stack.url + "/api/tags").json()["models"][0]
    assert card["name"] == "tiny-test:latest"
    assert card["details"]["format"] == "gguf"
    assert card["size"] > 0
    assert httpx.get(stack.url + "/api/ps").json()["models"][0]["context_length"] == 4096
    assert tuple(map(int, httpx.get(stack.url + "/api/version").json()["version"].split("."))) >= (0, 6, 4)


def test_show(stack: Any, r1_template: str) -> None:
    body = post(stack, "/api/show", {"model": "tiny-test"}).json()
    assert body["capabilities"] == ["completion", "tools", "thinking"]
    assert body["template"] == r1_template
    assert body["model_info"]["deepseek2.context_length"] == 512
    assert post(stack, "/api/show", {"name": "x"}).status_code == 404


@pytest.mark.parametrize("path", ["embed", "embeddings", "pull", "push", "create", "copy", "delete"])
def test_what_is_not_there_says_so(stack: Any, path: str) -> None:
    method = "DELETE" if path == "delete" else "POST"
    response = httpx.request(method, f"{stack.url}/api/{path}", json={"model": "x"})
    assert response.status_code == 501
    assert "does not" in response.json()["error"]


def test_official_client(stack: Any) -> None:
    ollama = pytest.importorskip("ollama")
    with contextlib.closing(ollama.Client(host=stack.url)) as client:
        use(client, stack, ollama)


def use(client: Any, stack: Any, ollama: Any) -> None:
    stack.engine.say("hm</think>hello world")
    answer = client.chat(model="tiny-test", messages=CHAT["messages"], think=True)
    assert (answer.message.content, answer.message.thinking) == ("hello world", "hm")
    stack.engine.say("</think>hello world")
    parts = list(client.generate(model="tiny-test", prompt="x", stream=True))
    assert "".join(part.response for part in parts) == "hello world"
    stack.engine.say(CALL)
    call = client.chat(model="tiny-test", messages=CHAT["messages"], tools=TOOLS).message.tool_calls[0]
    assert (call.function.name, call.function.arguments) == ("get_weather", {"city": "Oslo"})
    assert client.list().models[0].model == "tiny-test:latest"
    assert client.ps().models[0].model == "tiny-test:latest"
    assert "thinking" in client.show("tiny-test").capabilities
    with pytest.raises(ollama.ResponseError, match="does not"):
        client.embed(model="tiny-test", input="x")


@pytest.mark.parametrize("form", ["json", {"type": "object", "properties": {"a": {"type": "integer"}}}])
@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
def test_format(stack: Any, path: str, form: Any) -> None:
    stack.engine.say('</think>{"a": 1}')
    body = post(stack, path, {**CHAT, "prompt": "hello", "format": form, "stream": False}).json()
    assert (body["message"]["content"] if path == "/api/chat" else body["response"]) == '{"a": 1}'
    grammar = stack.engine.generates[0].grammar.text
    assert "answer: %json" in grammar
    assert ('"a"' in grammar) == (form != "json")


def test_format_of_a_raw_prompt(stack: Any) -> None:
    stack.engine.say('{"a": 1}')
    request = {"model": "tiny-test", "prompt": "hello", "raw": True, "format": "json", "stream": False}
    assert post(stack, "/api/generate", request).json()["response"] == '{"a": 1}'
    assert stack.engine.generates[0].grammar.text.startswith("start: %json")
