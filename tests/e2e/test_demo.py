"""The bundled model, through HTTP, as a user meets it."""

from __future__ import annotations

import json
import shlex
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from running_server import RunningServer

HELD_OUT = Path(__file__).parents[1] / "data" / "demo_held_out.jsonl"
EXACT = {"arithmetic": 0.9, "passkey": 0.9}


@pytest.fixture(scope="module")
def client(demo_server: RunningServer) -> OpenAI:
    return OpenAI(base_url=f"{demo_server.url}/v1", api_key="none", max_retries=0, timeout=60)


def test_serve_shows_address_answer_and_curl_line(demo_server: RunningServer) -> None:
    text = demo_server.text()
    assert f"Trimaran serves demo at {demo_server.url}" in text
    assert "  you> What is 17 + 25?" in text
    answer = next(line for line in demo_server.lines if line.startswith("  demo> "))
    assert "42" in answer


def test_the_curl_line_works_as_printed(demo_server: RunningServer) -> None:
    line = next(line for line in demo_server.lines if line.startswith("curl "))
    arguments = shlex.split(line)
    path = arguments[1].removeprefix(demo_server.url)
    assert arguments[2:4] == ["-H", "Content-Type: application/json"]
    status, answer = demo_server.post(path, arguments[arguments.index("-d") + 1].encode())
    assert status == 200
    assert answer["choices"][0]["message"]["role"] == "assistant"


def test_the_openai_client_streams_a_chat(client: OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "What is 8 + 5?"}]
    stream = client.chat.completions.create(
        model="demo",
        messages=messages,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    content = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert "13" in content
    assert len(chunks) > 2
    finish = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert finish[-1] == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 0

    whole = client.chat.completions.create(model="demo", messages=messages, temperature=0)
    assert whole.choices[0].message.content == content
    assert whole.usage == chunks[-1].usage


def test_the_openai_client_lists_the_model(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["demo"]


def test_held_out_questions_are_answered_exactly(demo_server: RunningServer) -> None:
    questions = [json.loads(line) for line in HELD_OUT.read_text().splitlines()]
    right: dict[str, list[bool]] = defaultdict(list)
    for question in questions:
        if question["task"] in EXACT:
            answer = demo_server.chat(question["messages"], max_tokens=256)
            right[question["task"]].append(answer.strip() == question["answer"])
    for task, least in EXACT.items():
        assert len(right[task]) >= 20, f"too few questions of {task}"
        assert sum(right[task]) / len(right[task]) >= least, (
            f"{task}: {sum(right[task])} of {len(right[task])}"
        )
