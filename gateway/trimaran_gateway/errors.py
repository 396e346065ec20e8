"""Failures as HTTP answers, in the envelope of the client's dialect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from trimaran.errors import OverloadedError, PeerError, RequestError

RETRY_AFTER_S = 2

_OPENAI_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    503: "service_unavailable",
    504: "timeout_error",
}

_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    431: "invalid_request_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class ApiError(HTTPException):
    """An answer with status ≥ 400. `code` is short and machine-readable; `param` names the field at fault."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        headers = {"Retry-After": str(max(1, round(retry_after)))} if retry_after is not None else None
        super().__init__(status, message, headers)
        self.message = message
        self.code = code
        self.param = param


class DeadlineError(Exception):
    """A request took longer than `gateway.request_timeout_s`."""


def bad_request(message: str, *, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """A 400 that names the field."""
    return ApiError(400, message, code=code, param=param)


def unsupported(param: str, why: str) -> ApiError:
    """A 400 for a field that we know, but cannot honour."""
    return bad_request(f"{param} is not supported: {why}", param=param, code="unsupported_parameter")


def api_error(error: BaseException) -> ApiError:
    """The answer to any failure; what was not expected says nothing about our inside."""
    match error:
        case ApiError():
            return error
        case RequestError():
            return ApiError(400, str(error), code=error.code, param=error.param)
        case OverloadedError():
            return ApiError(503, str(error), code="overloaded", retry_after=error.retry_after)
        case PeerError():
            return ApiError(503, str(error), code="engine_unavailable", retry_after=RETRY_AFTER_S)
        case DeadlineError():
            return ApiError(504, str(error), code="deadline_exceeded")
        case HTTPException():
            answer = ApiError(error.status_code, str(error.detail), code=_code_of(error.status_code))
            answer.headers = error.headers
            return answer
        case _:
            return ApiError(500, "internal error; the server's log tells more", code="internal_error")


def envelope(path: str, error: ApiError) -> dict[str, Any]:
    """The error's body for a client that called `path`."""
    if path.startswith("/api/"):
        return {"error": error.message}
    if path.startswith("/v1/messages"):
        kind = _ANTHROPIC_TYPES.get(error.status_code, "api_error")
        return {"type": "error", "error": {"type": kind, "message": error.message}}
    return openai_envelope(error)


def openai_envelope(error: ApiError) -> dict[str, Any]:
    """OpenAI's envelope, all four keys."""
    kind = _OPENAI_TYPES.get(error.status_code, "server_error" if error.status_code >= 500 else None)
    return {
        "error": {
            "message": error.message,
            "type": kind or "invalid_request_error",
            "param": error.param,
            "code": error.code,
        }
    }


def validation_message(problem: Mapping[str, Any]) -> tuple[str, str | None]:
    """One line and the field's name from one entry of pydantic's error list."""
    kind = str(problem.get("type"))
    place = [part for part in problem.get("loc", ()) if part != "body"]
    if kind == "json_invalid":
        return f"the body is not valid JSON: {problem.get('ctx', {}).get('error', '')}", None
    if not place:
        return "the body must be a JSON object", None
    name = _field_name(place)
    given = repr(problem.get("input"))
    shown = given if len(given) <= 80 else f"{given[:77]}…"
    text = str(problem.get("msg", "invalid"))
    hint = "" if kind == "missing" else f", got {shown}"
    return f"{name}: {text[:1].lower()}{text[1:]}{hint}", name


def _field_name(place: list[Any]) -> str:
    """`messages[0].content` from its path; names of union branches (never plain lower case) are left out."""
    name = ""
    for part in place:
        if isinstance(part, int):
            name += f"[{part}]"
        elif str(part).isidentifier() and str(part).islower() and part not in ("str", "int", "float", "bool"):
            name += f".{part}" if name else str(part)
    return name


def _code_of(status: int) -> str:
    return {404: "not_found", 405: "method_not_allowed", 413: "request_too_large"}.get(
        status, "invalid_request"
    )
