"""A tab in a real browser, and a server with the real page and a scripted model behind it."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvicorn
from browser import BROWSERS, TIMEOUT_S, DevTools, Page
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from prometheus_client import CollectorRegistry, Histogram
from trimaran.crashes import ServiceCrashes
from trimaran.wire import EngineStats, EngineStatus
from trimaran_gateway.routes.page import page_router
from trimaran_gateway.web.live import LiveReader, Model


@pytest.fixture(scope="session")
def devtools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevTools]:
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed: the page is not tested in a browser")
    profile = tmp_path_factory.mktemp("profile")
    browser = DevTools(executable, profile)
    yield browser
    browser.close()
    shutil.rmtree(profile, ignore_errors=True)


@pytest.fixture
def page(devtools: DevTools) -> Iterator[Page]:
    """A fresh tab; whatever a test does, the page itself must not fail or break its own policy."""
    tab = Page(devtools)
    yield tab
    troubles = tab.troubles()
    tab.close()
    assert troubles == []


# --- the server ---------------------------------------------------------------------------------------------


@dataclass
class Reply:
    """One scripted answer: deltas of a stream, or a refusal.

    Attributes:
        pause_s: before each delta.
        holds: the stream stays open after the last delta until the client leaves.
        status: not 200: `error` is the message of the refusal.
        error: with status 200, an error event in the middle of the stream.
    """

    deltas: list[dict[str, Any]] = field(default_factory=list)
    finish: str = "stop"
    pause_s: float = 0.0
    holds: bool = False
    status: int = 200
    error: str | None = None
    usage: dict[str, Any] = field(default_factory=lambda: {"prompt_tokens": 7, "completion_tokens": 3})


@dataclass
class FakeEngine:
    """An engine that reports what a test sets."""

    status: EngineStatus | None = field(
        default_factory=lambda: EngineStatus(state="ready", instance="a", context_length=4096)
    )
    reported: EngineStats | None = None
    asked: int = 0
    others: list[EngineStatus | None] = field(default_factory=list)

    @property
    def statuses(self) -> dict[str, EngineStatus | None]:
        return {str(label): status for label, status in enumerate([self.status, *self.others])}

    async def stats(self) -> EngineStats | None:
        self.asked += 1
        return self.reported


class FakeMetrics:
    """One histogram, like the gateway's."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.ttft = Histogram("trimaran_time_to_first_token_seconds", "…", registry=self.registry)

    def take_stats(self, stats: EngineStats | None, status: EngineStatus | None) -> None:
        del stats, status


class FakeServer:
    """The real page in front of scripted replies, one per request, in order."""

    def __init__(self) -> None:
        self.engine = FakeEngine()
        self.crashes: dict[str, ServiceCrashes] = {}
        self.metrics = FakeMetrics()
        self.replies: deque[Reply] = deque()
        self.bodies: list[dict[str, Any]] = []
        self.key: str | None = None
        self.left = threading.Event()
        """Set when a client went away before the end."""
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/"
        config = uvicorn.Config(
            self._app(), log_level="error", ws="none", lifespan="off", timeout_graceful_shutdown=1
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join(TIMEOUT_S)
        self._socket.close()

    def answer(self, text: str, **options: Any) -> None:
        """The next request gets this text, word by word."""
        self.replies.append(Reply([{"content": word} for word in _words(text)], **options))

    def think(self, thoughts: str, text: str, **options: Any) -> None:
        """The next request gets reasoning, then text."""
        reasoning = [{"reasoning_content": word} for word in _words(thoughts)]
        self.replies.append(Reply([*reasoning, *({"content": word} for word in _words(text))], **options))

    def call_tool(self, name: str, arguments: str) -> None:
        """The next request gets a tool call, its arguments in two pieces."""
        half = len(arguments) // 2
        first = {"index": 0, "id": "call_1", "type": "function", "function": {"name": name, "arguments": ""}}
        parts = [
            {"index": 0, "function": {"arguments": part}} for part in (arguments[:half], arguments[half:])
        ]
        self.replies.append(Reply([{"tool_calls": [part]} for part in (first, *parts)], finish="tool_calls"))

    def _app(self) -> FastAPI:
        app = FastAPI()
        model = Model(
            name="deepseek-r1",
            architecture="deepseek2",
            quantization="Q4_K",
            parameters=671_026_419_200,
            nbytes=404_430_186_496,
            context_length=163_840,
        )
        reader = LiveReader(self.engine, self.metrics, model, lambda: self.crashes)
        app.include_router(page_router(reader))
        app.add_api_route("/v1/chat/completions", self._chat, methods=["POST"])

        return app

    async def _chat(self, request: Request) -> Response:
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            return JSONResponse({"error": {"message": "no valid API key was given"}}, 401)
        self.bodies.append(await request.json())
        reply = self.replies.popleft() if self.replies else Reply([{"content": "Yes."}])
        if reply.status != 200:
            return JSONResponse({"error": {"message": reply.error}}, reply.status)
        return StreamingResponse(self._stream(reply), media_type="text/event-stream")

    async def _stream(self, reply: Reply) -> AsyncIterator[bytes]:
        is_whole = False
        try:
            yield b": still here\n\n"
            yield _event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
            for delta in reply.deltas:
                await asyncio.sleep(reply.pause_s)
                yield _event({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
            while reply.holds:
                await asyncio.sleep(0.02)
                yield b": still here\n\n"
            if reply.error:
                yield _event({"error": {"message": reply.error}})
            else:
                yield _event({"choices": [{"index": 0, "delta": {}, "finish_reason": reply.finish}]})
                yield _event({"choices": [], "usage": reply.usage})
                yield b"data: [DONE]\n\n"
            is_whole = True
        finally:
            if not is_whole:
                self.left.set()


def _words(text: str) -> list[str]:
    first, *rest = text.split(" ")
    return [first, *(f" {word}" for word in rest)]


def _event(body: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(body)}\n\n".encode()


@pytest.fixture
def server() -> Iterator[FakeServer]:
    fake = FakeServer()
    yield fake
    fake.close()


@pytest.fixture(scope="session")
def reply_maker() -> type[Reply]:
    """Makes replies that `FakeServer` has no shorter word for."""
    return Reply
