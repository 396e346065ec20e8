from __future__ import annotations

import hashlib
import re
from typing import Any

import httpx
import openai
import pytest
from trimaran.wire import RequestFailed

CHAT = {"messages": [{"role": "user", "content": "hello"}]}


def post(stack: Any, path: str = "/v1/chat/completions", **options: Any) -> httpx.Response:
    return httpx.post(stack.url + path, timeout=20, **options)


def error_of(response: httpx.Response) -> dict[str, Any]:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"temperature": "0.5"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": True}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": [""]}, "stop[0]"),
        ({"seed": 1 << 64}, "seed"),
        ({"top_k": 1 << 64}, "top_k"),
        ({"repetition_penalty": 3e-38}, "repetition_penalty"),
        ({"logit_bias": {"5": 3e38}}, "logit_bias"),
        ({"logit_bias": {"x": 1}}, "logit_bias.x"),
        ({"logit_bias": {"9999": 1}}, "logit_bias"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {}}},
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": "x"}}},
            "response_format.json_schema.schema",
        ),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "a"}}] * 2}, "tools[1].function.name"),
        ({"tool_choice": "required"}, "tool_choice"),
        (
            {
                "tools": [{"type": "function", "function": {"name": "a"}}],
                "tool_choice": {"type": "function", "function": {"name": "b"}},
            },
            "tool_choice",
        ),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        (
            {"stream": True, "stream_options": {"include_obfuscation": True}},
            "stream_options.include_obfuscation",
        ),
        ({"metadata": 5}, "metadata"),
        ({"service_tier": 5}, "service_tier"),
        ({"safety_identifier": 5}, "safety_identifier"),
        ({"prompt_cache_key": 5}, "prompt_cache_key"),
        ({"reasoning_effort": "huge"}, "reasoning_effort"),
        ({"chat_template_kwargs": {"enable_thinking": "yes"}}, "chat_template_kwargs.enable_thinking"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"guided_choice": ["a"]}, "guided_choice"),
        ({"use_beam_search": True}, "use_beam_search"),
        ({"store": True}, "store"),
        ({"echo": True}, "echo"),
        ({"n_predict": 5}, "n_predict"),
        ({"repeat_penalty": 1.1}, "repeat_penalty"),
        ({"skip_special_tokens": False}, "skip_special_tokens"),
        ({"truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
        ({"chat_template": "x"}, "chat_template"),
        ({"continue_final_message": True}, "continue_final_message"),
    ],
)
def test_bad_values_name_their_field(stack: Any, change: dict[str, Any], param: str) -> None:
    response = post(stack, json={**CHAT, **change})
    assert response.status_code == 400, response.text
    error = error_of(response)
    assert error["param"] == param
    assert param.split("[", maxsplit=1)[0].split(".", maxsplit=1)[0] in error["message"]
    assert error["type"] == "invalid_request_error"
    assert stack.engine.generates == []


def test_harmless_values_pass(stack: Any) -> None:
    stack.engine.say("</think>ok")
    extra = {
        "store": False,
        "modalities": ["text"],
        "user": "me",
        "echo": False,
        "skip_special_tokens": True,
        "metadata": {},
        "response_format": {"type": "text"},
    }
    assert post(stack, json={**CHAT, **extra, "use_beam_search": False}).status_code == 200


@pytest.mark.parametrize(
    "body",
    [b"{", b"", b"[1]", b"nonsense", b'{"messages": ' + b"[" * 50_000, b'{"temperature": NaN}', b"\xff\xfe"],
)
def test_bad_bodies(stack: Any, body: bytes) -> None:
    response = post(stack, content=body)
    assert response.status_code == 400
    assert error_of(response)["type"] == "invalid_request_error"


def test_curl_sends_no_content_type(stack: Any) -> None:
    stack.engine.say("</think>ok")
    body = b'{"messages": [{"role": "user", "content": "x"}]}'
    headers = {"content-type": "application/x-www-form-urlencoded"}
    assert post(stack, content=body, headers=headers).status_code == 200
    foreign = {**headers, "origin": "https://evil.example"}
    assert post(stack, content=body, headers=foreign).status_code == 400


def test_unknown_model_and_path(stack: Any) -> None:
    response = post(stack, json={**CHAT, "model": "gpt-4"})
    assert response.status_code == 404
    assert error_of(response)["code"] == "model_not_found"
    assert "tiny-test" in error_of(response)["message"]
    assert error_of(post(stack, "/v1/nothing", json={}))["code"] == "not_found"


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/chat/completions", "there is no /chat/completions: did you mean /v1/chat/completions?"),
        ("/v1/v1/messages", "there is no /v1/v1/messages: did you mean /v1/messages?"),
        ("/v1/api/chat", "there is no /v1/api/chat: did you mean /api/chat?"),
        ("/v1/completions/", "there is no /v1/completions/: did you mean /v1/completions?"),
        ("/v1/nothing", "there is no /v1/nothing: /docs lists what there is"),
        ("/" + "x" * 500, f"there is no /{'x' * 99}…: /docs lists what there is"),
    ],
)
def test_a_wrong_path_is_answered_with_the_right_one(stack: Any, path: str, words: str) -> None:
    response = post(stack, path, json={})
    assert response.status_code == 404
    assert error_of(response)["message"] == words


def test_a_wrong_method_is_answered_with_the_right_one(stack: Any) -> None:
    response = httpx.get(stack.url + "/v1/chat/completions")
    assert response.status_code == 405
    assert response.headers["allow"] == "POST"
    assert error_of(response)["message"] == "/v1/chat/completions does not take GET, but POST"
    assert httpx.get(stack.url + "/v1/chat/completions").status_code == 405


def test_prompt_longer_than_the_context(stack: Any) -> None:
    response = post(stack, json={"messages": [{"role": "user", "content": "x " * 5000}]})
    assert response.status_code == 400
    error = error_of(response)
    assert error["code"] == "context_length_exceeded"
    assert "maximum context length is 4096 tokens" in error["message"]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", {"prompt": "x\n" * 400_000}, "prompt"),
        ("/v1/completions", {"prompt": " " * 1_500_000}, "prompt"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x\n" * 400_000}]}, "messages"),
        ("/v1/completions", {"prompt": "x " * 4095}, "prompt"),
    ],
)
def test_prompts_far_longer_than_the_context(stack: Any, path: str, body: dict[str, Any], param: str) -> None:
    response = post(stack, path, json=body)
    assert response.status_code == 400
    error = error_of(response)
    assert (error["code"], error["param"]) == ("context_length_exceeded", param)
    assert re.search(r"your prompt has (8191|at least \d{4,}) tokens", error["message"])
    assert stack.engine.generates == []


def test_counting_has_no_limit(stack: Any) -> None:
    messages = [{"role": "user", "content": "x " * 5000}]
    counted = post(stack, "/v1/messages/count_tokens", json={"model": "tiny-test", "messages": messages})
    assert counted.json()["input_tokens"] > 5000
    assert post(stack, "/tokenize", json={"messages": messages}).json()["count"] > 5000


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("code", "status"),
    [("context_length_exceeded", 400), ("overloaded", 503), ("unavailable", 503), ("internal", 500)],
)
def test_engine_refusals(stack: Any, stream: bool, code: str, status: int) -> None:
    stack.engine.say("x", failure=RequestFailed(request_id="", code=code, message="because"))
    response = post(stack, json={**CHAT, "stream": stream})
    assert response.status_code == status
    assert ("retry-after" in response.headers) == (status == 503)
    assert error_of(response)["code"]


def test_body_limit(make_stack: Any) -> None:
    with make_stack(max_body_bytes=2000) as stack:
        large = b'{"messages": [{"role": "user", "content": "' + b"x" * 3000 + b'"}]}'
        response = post(stack, content=large)
        assert response.status_code == 413
        assert error_of(response)["code"] == "request_too_large"
        chunked = post(stack, content=iter([large[:1500], large[1500:]]))
        assert chunked.status_code == 413
        assert error_of(chunked)["code"] == "request_too_large"


def test_api_keys(make_stack: Any) -> None:
    digest = hashlib.sha256(b"right").hexdigest()
    with make_stack(api_keys=(digest,)) as stack:
        assert error_of(post(stack, json=CHAT))["code"] == "invalid_api_key"
        assert post(stack, json=CHAT, headers={"authorization": "Bearer wrong"}).status_code == 401
        assert post(stack, json=CHAT, headers={"authorization": f"Bearer {digest}"}).status_code == 401
        assert post(stack, json=CHAT, headers={"x-api-key": "right"}).status_code == 200
        assert stack.client("right").models.list().data[0].id == "tiny-test"
        assert httpx.get(stack.url + "/health").status_code == 200
        assert httpx.get(stack.url + "/metrics").status_code == 401


def test_cors(make_stack: Any, stack: Any) -> None:
    ask = {"origin": "https://ui.example", "access-control-request-method": "POST"}
    with make_stack(cors_origins=("https://ui.example",)) as open_stack:
        allowed = httpx.options(open_stack.url + "/v1/chat/completions", headers=ask)
        assert allowed.headers["access-control-allow-origin"] == "https://ui.example"
        other = httpx.options(
            open_stack.url + "/v1/chat/completions", headers={**ask, "origin": "https://evil.example"}
        )
        assert "access-control-allow-origin" not in other.headers
    closed = httpx.options(stack.url + "/v1/chat/completions", headers=ask)
    assert "access-control-allow-origin" not in closed.headers


def test_request_timeout(make_stack: Any, wait_for: Any) -> None:
    with make_stack(request_timeout_s=0.3) as stack:
        stack.engine.say("</think>slow", delay_s=0.2)
        response = post(stack, json=CHAT)
        assert response.status_code == 504
        assert error_of(response)["code"] == "deadline_exceeded"
        wait_for(lambda: len(stack.engine.aborts) == 1)


def test_errors_reach_the_official_client(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as failure:
        client.chat.completions.create(model="nope", messages=CHAT["messages"])
    assert failure.value.code == "model_not_found"
