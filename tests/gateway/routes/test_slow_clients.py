"""Clients that begin a request and do not end it."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest
from trimaran_gateway import middleware, punctual

BODY = json.dumps({"messages": [{"role": "user", "content": "hello"}]}).encode()
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(BODY)


def until_closed(client: socket.socket) -> bytes:
    """All that the server sends until it closes the connection, which it does within the socket's timeout."""
    parts = []
    while part := client.recv(65536):
        parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize("begun", [b"", HEAD[:20], HEAD[:-2]])
def test_a_head_that_does_not_end(make_stack: Any, monkeypatch: pytest.MonkeyPatch, begun: bytes) -> None:
    monkeypatch.setattr(punctual, "HEAD_TIMEOUT_S", 0.2)
    with make_stack() as stack, socket.create_connection(stack.listener.getsockname(), 20) as client:
        client.sendall(begun)
        assert until_closed(client) == b""


def test_a_second_head_that_does_not_end(make_stack: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(punctual, "HEAD_TIMEOUT_S", 0.2)
    with make_stack() as stack, socket.create_connection(stack.listener.getsockname(), 20) as client:
        client.sendall(b"GET /ready HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 200")
        client.sendall(HEAD[:20])
        assert b"HTTP/1.1" not in until_closed(client)


@pytest.mark.parametrize("begun", [b"", BODY[:5]])
def test_a_body_that_does_not_end(make_stack: Any, monkeypatch: pytest.MonkeyPatch, begun: bytes) -> None:
    monkeypatch.setattr(middleware, "BODY_TIMEOUT_S", 0.2)
    with make_stack() as stack, socket.create_connection(stack.listener.getsockname(), 20) as client:
        client.sendall(HEAD + begun)
        answer = until_closed(client)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"request_timeout" in answer


def test_answers_may_take_longer_than_questions(make_stack: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "BODY_TIMEOUT_S", 0.2)
    monkeypatch.setattr(punctual, "HEAD_TIMEOUT_S", 0.2)
    with make_stack() as stack, socket.create_connection(stack.listener.getsockname(), 20) as client:
        stack.engine.say("</think>hello", first_delay_s=1)
        client.sendall(HEAD.replace(b"Host: x", b"Host: x\r\nConnection: close") + BODY)
        assert until_closed(client).startswith(b"HTTP/1.1 200")
