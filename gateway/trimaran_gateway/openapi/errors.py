"""Errors in each dialect's envelope, and the tables of statuses that routes document."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

Responses = dict[int | str, dict[str, Any]]

_STATUSES = {
    400: "a field is missing, wrong or cannot be honoured; the message names it",
    401: "no valid API key was given",
    404: "no such model",
    413: "the body is larger than `gateway.max_body_bytes`",
    429: "the client's rate or concurrency limit is reached; `Retry-After` says when to try again",
    431: "too many headers",
    500: "an internal error",
    503: "the engine is full, loading or away, or the server is shutting down; with `Retry-After`",
    504: "the request took longer than `gateway.request_timeout_s`",
}


class OpenAIErrorBody(BaseModel):
    """What went wrong: `param` names the field at fault, `code` is for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIError(BaseModel):
    """OpenAI's envelope."""

    error: OpenAIErrorBody


class AnthropicErrorBody(BaseModel):
    """What went wrong."""

    type: str
    message: str


class AnthropicError(BaseModel):
    """Anthropic's envelope."""

    type: Literal["error"]
    error: AnthropicErrorBody


class OllamaError(BaseModel):
    """Ollama's envelope."""

    error: str


def answers(
    model: type[BaseModel] | Any | None = None,
    *,
    error: type[BaseModel] = OpenAIError,
    stream: str | None = None,
    event: str = "",
) -> Responses:
    """The `responses` of a route.

    Args:
        model: of its JSON answer; None leaves 200 to the route.
        error: the dialect's envelope.
        stream: media type of its streamed answer, if it has one.
        event: what the stream is made of.
    """
    documented: Responses = {}
    if model is not None:
        documented[200] = {"model": model, "description": "the answer"}
    if stream is not None:
        documented[200]["content"] = {stream: {"schema": _stream_schema(stream, event)}}
        documented[200]["description"] = "the answer, streamed if `stream` says so"
    for status, why in _STATUSES.items():
        documented[status] = {"model": error, "description": why}
    # Named too because FastAPI else invents a 422: here a wrong field is a 400.
    documented["default"] = {"model": error, "description": "any other error"}
    return documented


def _stream_schema(media_type: str, event: str) -> dict[str, Any]:
    """Of each server-sent event, or of the text."""
    if media_type != "text/event-stream":
        return {"type": "string", "description": event}
    fields = {name: {"type": "string"} for name in ("event", "data")}
    return {"type": "object", "properties": fields, "required": ["data"], "description": event}


def not_there(error: type[BaseModel] = OpenAIError) -> Responses:
    """The `responses` of a route that only says that it is not there."""
    refused = {"model": error, "description": "this server does not do that"}
    return {501: refused, "default": {"model": error, "description": "any other error"}}
