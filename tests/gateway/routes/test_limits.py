"""Limits as clients of each dialect meet them."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import threading
from typing import Any

import anthropic
import httpx
import ollama
import openai
import pytest

CHAT = {"messages": [{"role": "user", "content": "hello"}]}
KEYS = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("one", "two")}


def chat(stack: Any, key: str = "one", **options: Any) -> httpx.Response:
    url = stack.url + "/v1/chat/completions"
    return httpx.post(url, json=CHAT, headers={"authorization": f"Bearer {key}"}, timeout=20, **options)


def test_each_key_has_its_own_requests(make_stack: Any) -> None:
    with make_stack(requests_per_minute=2, api_keys=tuple(KEYS.values())) as stack:
        assert [chat(stack).status_code for _ in range(3)] == [200, 200, 429]
        assert chat(stack, "two").status_code == 200
        refused = chat(stack)
        assert 1 <= int(refused.headers["retry-after"]) <= 30
        assert refused.json()["error"] == {
            "message": refused.json()["error"]["message"],
            "type": "rate_limit_error",
            "param": None,
            "code": "rate_limit_exceeded",
        }
        for path in ("/health", "/metrics", "/v1/models"):  # who watches is not limited
            headers = {"x-api-key": "one"}
            assert httpx.get(stack.url + path, headers=headers).status_code == 200


def test_every_dialect_says_it_in_its_own_way(make_stack: Any) -> None:
    messages: list[Any] = [{"role": "user", "content": "x"}]
    with make_stack(requests_per_minute=1) as stack:
        assert chat(stack).status_code == 200
        with stack.client() as openai_client, pytest.raises(openai.RateLimitError) as by_openai:
            openai_client.chat.completions.create(model="tiny-test", messages=messages)
        assert by_openai.value.code == "rate_limit_exceeded"
        client = anthropic.Anthropic(base_url=stack.url, api_key="none", max_retries=0)
        with client, pytest.raises(anthropic.RateLimitError) as by_anthropic:
            client.messages.create(model="tiny-test", max_tokens=5, messages=messages)
        assert by_anthropic.value.body["error"]["type"] == "rate_limit_error"  # type: ignore[index]
        with (
            contextlib.closing(ollama.Client(stack.url)) as ollama_client,
            pytest.raises(ollama.ResponseError, match="1 requests per minute") as by_ollama,
        ):
            ollama_client.chat("tiny-test", messages)
        assert by_ollama.value.status_code == 429


def test_prompt_and_answer_are_paid_for(make_stack: Any) -> None:
    with make_stack(tokens_per_minute=40) as stack:
        for _ in range(2):
            stack.engine.say("</think>" + "hello " * 20)
        assert chat(stack).status_code == 200
        refused = chat(stack)
        assert refused.status_code == 429
        assert "40 tokens per minute" in refused.json()["error"]["message"]
        assert len(stack.engine.generates) == 1


def test_requests_at_once_end_with_their_streams(make_stack: Any, wait_for: Any) -> None:
    with make_stack(max_concurrent_requests=1) as stack:
        stack.engine.say("</think>" + "x" * 500, delay_s=0.02)
        body = {**CHAT, "stream": True}
        with httpx.stream("POST", stack.url + "/v1/chat/completions", json=body, timeout=20) as response:
            lines = response.iter_lines()
            next(lines)
            assert chat(stack).status_code == 429
        wait_for(lambda: chat(stack).status_code == 200)


def test_streams_of_many_clients_pay_for_themselves(make_stack: Any) -> None:
    with make_stack(tokens_per_minute=1000, api_keys=tuple(KEYS.values())) as stack:
        for _ in range(8):
            stack.engine.say("</think>" + "y" * 150)
        threads = [threading.Thread(target=chat, args=(stack, "one")) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert chat(stack, "one").status_code == 429
        assert chat(stack, "two").status_code == 200


def test_too_many_headers(make_stack: Any) -> None:
    with make_stack() as stack:
        headers = {f"x-header-{number}": "x" for number in range(200)}
        response = httpx.get(stack.url + "/v1/models", headers=headers)
        assert response.status_code == 431
        assert response.json()["error"]["code"] == "too_many_headers"


def test_too_large_headers(make_stack: Any) -> None:
    with make_stack() as stack:
        response = httpx.get(stack.url + "/v1/models", headers={"x-long": "a" * 65_600})
        assert response.status_code in (400, 431), "431 if all of it arrives at once"
        host, port = stack.listener.getsockname()
        with socket.create_connection((host, port), timeout=10) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * 100_000)
            assert connection.recv(100).startswith(b"HTTP/1.1 400")
        assert httpx.get(stack.url + "/health").status_code == 200


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/chat", "/v1/messages", "/tokenize"])
def test_bodies_may_not_be_nested_deeply(make_stack: Any, path: str) -> None:
    def nested(depth: int) -> bytes:
        return b'{"messages": [], "extra": ' + b"[" * depth + b"]" * depth + b"}"

    with make_stack() as stack:
        deep = httpx.post(stack.url + path, content=nested(64))
        assert deep.status_code == 400
        assert "64 levels" in deep.text
        assert "64 levels" not in httpx.post(stack.url + path, content=nested(63)).text
