from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from typing import Any

import httpx
import pytest
from trimaran.wire import EngineStatus

CHAT = {"messages": [{"role": "user", "content": "hello"}]}


def stream_lines(stack: Any, **body: Any) -> list[str]:
    with httpx.stream(
        "POST", stack.url + "/v1/chat/completions", json={**CHAT, "stream": True, **body}
    ) as answer:
        assert answer.status_code == 200
        return [line for line in answer.iter_lines() if line]


@pytest.mark.parametrize("stream", [False, True])
def test_generation_stops_when_the_client_leaves(stack: Any, stream: bool, wait_for: Any) -> None:
    stack.engine.say("</think>" + "hello " * 200, delay_s=0.02)
    body = {**CHAT, "stream": stream}
    with (
        contextlib.suppress(httpx.ReadTimeout),
        httpx.stream("POST", stack.url + "/v1/chat/completions", json=body, timeout=0.3) as answer,
    ):
        next(answer.iter_bytes())
    wait_for(lambda: stack.engine.aborts == [stack.engine.generates[0].request_id])
    wait_for(lambda: stack.gateway.engine.in_flight == 0)


def test_a_client_that_leaves_before_the_first_token(stack: Any, wait_for: Any) -> None:
    stack.engine.say("</think>late", first_delay_s=30)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(stack.url + "/v1/chat/completions", json={**CHAT, "stream": True}, timeout=0.3)
    wait_for(lambda: len(stack.engine.aborts) == 1)


def test_two_hundred_dropped_clients(stack: Any, wait_for: Any) -> None:
    body = json.dumps({**CHAT, "stream": True}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    for _ in range(200):
        stack.engine.say("</think>hello", first_delay_s=60)
    address = stack.listener.getsockname()
    clients = [socket.create_connection(address) for _ in range(200)]
    for client in clients:
        client.sendall(head + body)
    wait_for(lambda: len(stack.engine.generates) == 200, 20)
    for client in clients:
        client.close()
    wait_for(lambda: stack.gateway.engine.in_flight == 0, 20)
    wait_for(lambda: {sent.request_id for sent in stack.engine.generates} == set(stack.engine.aborts), 20)


def test_many_streams_are_not_mixed_up(stack: Any) -> None:
    for number in range(40):
        stack.engine.say(f"</think>{number} " * 20, batch=3, delay_s=0.001)

    async def ask(client: httpx.AsyncClient) -> str:
        answer = (await client.post("/v1/chat/completions", json=CHAT)).json()
        return str(answer["choices"][0]["message"]["content"])

    async def ask_all() -> list[str]:
        async with httpx.AsyncClient(base_url=stack.url, timeout=30) as client:
            return await asyncio.gather(*(ask(client) for _ in range(40)))

    texts = asyncio.run(ask_all())
    assert sorted(texts, key=lambda text: int(text.split()[0])) == [f"{n} " * 20 for n in range(40)]


def test_silent_streams_get_comments(make_stack: Any) -> None:
    with make_stack(keepalive_s=0.1) as stack:
        stack.engine.say("</think>hello", first_delay_s=0.35)
        lines = stream_lines(stack)
    assert lines[0].startswith(":")
    assert 2 <= sum(line.startswith(":") for line in lines) <= 5
    assert lines[-1] == "data: [DONE]"


def test_the_engine_may_die_and_come_back(make_stack: Any, wait_for: Any) -> None:
    with make_stack() as stack:
        stack.engine.say("</think>hello" * 50, delay_s=0.05)
        lines: list[str] = []
        reader = threading.Thread(target=lambda: lines.extend(stream_lines(stack)))
        reader.start()
        wait_for(lambda: len(stack.engine.generates) == 1)
        time.sleep(0.5)  # the stream has begun: its status is sent
        stack.engine.say("</think>waiting", first_delay_s=30)
        waiting: list[httpx.Response] = []
        waiter = threading.Thread(
            target=lambda: waiting.append(
                httpx.post(stack.url + "/v1/chat/completions", json=CHAT, timeout=20)
            )
        )
        waiter.start()
        wait_for(lambda: len(stack.engine.generates) == 2)
        stack.stop_engine()
        reader.join(5)
        waiter.join(5)
        assert "engine_unavailable" in lines[-1]
        assert waiting[0].status_code == 503
        health = httpx.get(stack.url + "/health")
        assert health.status_code == 503
        assert health.json()["status"] == "unavailable"
        refused = httpx.post(stack.url + "/v1/chat/completions", json=CHAT)
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        stack.start_engine()
        wait_for(lambda: httpx.get(stack.url + "/health").status_code == 200)
        stack.engine.say("</think>back")
        answer = httpx.post(stack.url + "/v1/chat/completions", json=CHAT).json()
        assert answer["choices"][0]["message"]["content"] == "back"


def test_a_restart_faster_than_the_poll_is_noticed(make_stack: Any, wait_for: Any) -> None:
    with make_stack() as stack:
        stack.engine.say("</think>hello", first_delay_s=30)
        answers: list[httpx.Response] = []
        waiter = threading.Thread(
            target=lambda: answers.append(
                httpx.post(stack.url + "/v1/chat/completions", json=CHAT, timeout=20)
            )
        )
        waiter.start()
        wait_for(lambda: len(stack.engine.generates) == 1)
        stack.engine.status = EngineStatus(state="ready", instance="another", context_length=512)
        waiter.join(5)
        assert answers[0].status_code == 503
        assert "restarted" in answers[0].json()["error"]["message"]


def test_health_while_loading(make_stack: Any, wait_for: Any) -> None:
    with make_stack() as stack:
        stack.engine.status = EngineStatus(state="loading", instance="one", progress=0.25, detail="experts")
        wait_for(lambda: httpx.get(stack.url + "/health").status_code == 503)
        body = httpx.get(stack.url + "/ready").json()
        assert (body["status"], body["progress"], body["detail"]) == ("loading", 0.25, "experts")
        response = httpx.post(stack.url + "/v1/chat/completions", json=CHAT)
        assert response.status_code == 503
        assert "loading" in response.json()["error"]["message"]


def test_a_stream_that_outlasts_the_drain_ends_with_an_error_event(
    make_stack: Any, wait_for: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with make_stack(drain_s=0.3) as stack:
        stack.engine.say("</think>" + "hello world " * 500, delay_s=0.05)
        lines: list[str] = []

        def read() -> None:
            body = {**CHAT, "stream": True}
            with httpx.stream("POST", stack.url + "/v1/chat/completions", json=body) as answer:
                lines.extend(filter(None, answer.iter_lines()))

        reader = threading.Thread(target=read)
        reader.start()
        wait_for(lambda: bool(lines))
        stack.stop.request()
        reader.join(20)
        assert not reader.is_alive()
        assert json.loads(lines[-1].removeprefix("data: "))["error"] == {
            "message": "the server is shutting down",
            "type": "service_unavailable",
            "param": None,
            "code": "engine_unavailable",
        }
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_drain_lets_streams_finish(make_stack: Any, wait_for: Any) -> None:
    with make_stack() as stack:
        stack.engine.say("</think>hello world, hello", delay_s=0.05)
        lines: list[str] = []
        reader = threading.Thread(target=lambda: lines.extend(stream_lines(stack)))
        with httpx.Client(base_url=stack.url) as client:
            client.get("/health")
            reader.start()
            wait_for(lambda: len(stack.engine.generates) == 1)
            stack.stop.request()
            wait_for(lambda: stack.gateway.is_draining)
            refused = client.post("/v1/chat/completions", json=CHAT)
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "shutting_down"
        reader.join(10)
        assert lines[-1] == "data: [DONE]"
        assert '"finish_reason":"stop"' in lines[-2]
