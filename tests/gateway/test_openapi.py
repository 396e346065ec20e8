"""The OpenAPI document is complete, and answers are what it says: schemathesis against a scripted engine."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import CHECKS, load_all_checks

_CHAT = {"model": "tiny-test", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 20}
_TEXT = {"model": "tiny-test", "prompt": "hello"}
STREAMED = {
    "/v1/chat/completions": _CHAT,
    "/v1/completions": _TEXT,
    "/v1/responses": {"model": "tiny-test", "input": "hello"},
    "/v1/messages": _CHAT,
    "/api/chat": _CHAT,
    "/api/generate": _TEXT,
}
"""A body that each of them answers."""
REQUIRED = {"messages", "prompt", "input", "model", "max_tokens", "tokens"}
EXAMPLES = 20
"""Bodies per operation and kind, valid and invalid."""

load_all_checks()
CONFORMANCE = CHECKS.get_by_names(
    [f"{what}_conformance" for what in ("status_code", "content_type", "response_headers", "response_schema")]
)


@pytest.fixture(scope="module")
def document(shared_stack: Any) -> dict[str, Any]:
    return httpx.get(shared_stack.url + "/openapi.json").json()


def operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (path, method, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]


def test_every_operation_documents_its_answers(document: dict[str, Any]) -> None:
    found = operations(document)
    assert len(found) > 25
    for path, method, operation in found:
        responses = operation["responses"]
        where = f"{method} {path}"
        assert "422" not in responses, where
        assert operation["summary"], where
        for status, response in responses.items():
            content = response.get("content", {})
            assert content, (where, status)
            assert all(kind["schema"] for kind in content.values()), (where, status)
        if path in STREAMED:
            assert len(responses["200"]["content"]) == 2, where
        if method == "post" and "501" not in responses:
            assert {"200", "400", "401", "413", "429", "500", "503"} <= set(responses), where


def thin_out(case: schemathesis.Case, share: int) -> None:
    """Ask for our model, and with `share` > 0 for a quarter of the optional fields: seldom do all fit."""
    if not isinstance(case.body, dict):
        return
    kept = {
        name: value
        for index, (name, value) in enumerate(sorted(case.body.items()))
        if name in REQUIRED or not share or index % 4 == share - 1
    }
    if isinstance(kept.get("model"), str):
        kept["model"] = "tiny-test"
    case.body = kept


@pytest.mark.slow
def test_any_body_gets_a_documented_answer(shared_stack: Any) -> None:
    schema = schemathesis.openapi.from_url(shared_stack.url + "/openapi.json")
    answered: set[tuple[str, int]] = set()

    for result in schema.get_all_operations():
        operation = result.ok()

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(
            case=operation.as_strategy() | operation.as_strategy(schemathesis.GenerationMode.NEGATIVE),
            share=st.integers(0, 4),
        )
        def check(case: schemathesis.Case, share: int) -> None:
            thin_out(case, share)
            shared_stack.engine.scripts.clear()
            shared_stack.engine.say("hm</think>hello world")
            response = case.call(timeout=20)
            answered.add((case.path, response.status_code))
            documented = case.operation.definition.raw["responses"]
            assert response.status_code < 500 or str(response.status_code) in documented
            assert response.status_code not in (500, 504), response.text
            case.validate_response(response, checks=CONFORMANCE)

        check()
    assert {200, 400, 404, 501} <= {status for _, status in answered}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", STREAMED)
def test_a_good_body_gets_the_documented_answer(shared_stack: Any, path: str, stream: bool) -> None:
    schema = schemathesis.openapi.from_url(shared_stack.url + "/openapi.json")
    case = schema[path]["POST"].Case(body={**STREAMED[path], "stream": stream}, media_type="application/json")
    shared_stack.engine.scripts.clear()
    shared_stack.engine.say("hm</think>hello world")
    response = case.call(timeout=20)
    assert response.status_code == 200, response.text
    case.validate_response(response, checks=CONFORMANCE)
