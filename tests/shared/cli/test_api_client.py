from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from trimaran.cli.api_client import ApiClient, Usage
from trimaran.errors import ConfigError, PeerError, RequestError

Answer = tuple[int, bytes]
Serve = Callable[[Answer], ApiClient]


class Handler(BaseHTTPRequestHandler):
    answer: Answer = (200, b"")
    seen: dict[str, Any]

    def do_GET(self) -> None:
        self._reply(b"")

    def do_POST(self) -> None:
        self._reply(self.rfile.read(int(self.headers["Content-Length"])))

    def _reply(self, body: bytes) -> None:
        status, text = self.answer
        self.seen |= {"path": self.path, "body": body, "key": self.headers["Authorization"]}
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def seen() -> dict[str, Any]:
    return {}


@pytest.fixture
def serve(seen: dict[str, Any]) -> Iterator[Serve]:
    """A server that gives one answer to everything, and a client of it."""
    servers = []

    def start(answer: Answer) -> ApiClient:
        handler = type("Fixed", (Handler,), {"answer": answer, "seen": seen})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return ApiClient(f"http://127.0.0.1:{server.server_port}/v1", "secret")

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def events(*bodies: object) -> bytes:
    lines = [f"data: {json.dumps(body)}\n\n" for body in bodies]
    return (": comment\n\n" + "".join(lines) + "data: [DONE]\n\ndata: never\n\n").encode()


def chunk(**delta: str) -> dict[str, Any]:
    return {"choices": [{"delta": delta}]}


def test_a_streamed_answer(serve: Serve, seen: dict[str, Any]) -> None:
    usage = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}
    stream = events(chunk(role="assistant"), chunk(reasoning_content="hm"), chunk(content="42"), usage)
    api = serve((200, stream))
    deltas = list(api.chat([{"role": "user", "content": "?"}], max_tokens=5))
    assert [(delta.text, delta.reasoning) for delta in deltas] == [("hm", True), ("42", False)]
    assert api.usage == Usage(3, 2)
    assert seen["path"] == "/v1/chat/completions"
    assert seen["key"] == "Bearer secret"
    assert json.loads(seen["body"])["max_tokens"] == 5


def test_refusals_carry_the_servers_words(serve: Serve) -> None:
    api = serve((400, b'{"error": {"message": "too long", "code": "context_length_exceeded"}}'))
    with pytest.raises(RequestError, match="too long") as caught:
        list(api.chat([]))
    assert caught.value.code == "context_length_exceeded"


def test_a_refused_key_says_how_to_give_one(serve: Serve) -> None:
    api = serve((401, b'{"error": {"message": "no valid API key was given", "code": "invalid_api_key"}}'))
    with pytest.raises(RequestError, match=r"given \(give one with --key or TRIMARAN_API_KEY\)"):
        api.model()


def test_an_error_in_the_stream_is_raised(serve: Serve) -> None:
    api = serve((200, events(chunk(content="a"), {"error": {"message": "the expert service is gone"}})))
    answer = api.chat([])
    assert next(answer).text == "a"
    with pytest.raises(RequestError, match="the expert service is gone"):
        next(answer)


def test_strangers_are_recognised(serve: Serve) -> None:
    with pytest.raises(PeerError, match="no JSON"):
        serve((200, b"<html>")).model()
    with pytest.raises(PeerError, match="lists no model"):
        serve((200, b'{"data": []}')).model()
    with pytest.raises(PeerError, match="streamed no JSON"):
        list(serve((200, b"data: {oops\n\n")).chat([]))


def test_health(serve: Serve) -> None:
    loading = serve((503, b'{"status": "loading", "progress": 0.5, "detail": "layer 3"}')).health()
    assert loading is not None
    assert (loading.ready, loading.answers, loading.state, loading.progress) == (False, False, "loading", 0.5)
    degraded = serve((200, b'{"status": "degraded"}')).health()
    assert degraded is not None
    assert (degraded.ready, degraded.answers) == (False, True)
    ready = serve((200, b'{"status": "ready"}')).health()
    assert ready is not None
    assert ready.ready
    assert serve((200, b"nonsense")).health() is None


def test_nobody_there() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    api = ApiClient(f"127.0.0.1:{port}")
    assert api.health() is None
    with pytest.raises(PeerError, match="does not answer"):
        api.model()


@pytest.mark.parametrize("url", ["ftp://x", "http://", "::"])
def test_bad_addresses(url: str) -> None:
    with pytest.raises(ConfigError, match="no HTTP address"):
        ApiClient(url)


def test_addresses_with_a_path_or_a_bad_port() -> None:
    with pytest.raises(ConfigError, match="has the path /api, but the API is at the root"):
        ApiClient("http://localhost:8000/api")
    with pytest.raises(ConfigError, match="no HTTP address: "):
        ApiClient("http://localhost:eighty")
    assert ApiClient("http://[::1]:8000/v1/").url == "http://[::1]:8000"
    assert ApiClient("https://localhost").url == "https://localhost"


def test_a_key_that_no_header_takes() -> None:
    with pytest.raises(ConfigError, match="check --key"):
        ApiClient("localhost", "first\nsecond")
