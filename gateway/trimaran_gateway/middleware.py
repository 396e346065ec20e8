"""What a request passes before its route: keys, draining, limits. Plain ASGI: streams stay streams."""

from __future__ import annotations

import hashlib
import hmac

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trimaran_gateway.context import Gateway
from trimaran_gateway.errors import RETRY_AFTER_S, ApiError, envelope
from trimaran_gateway.web.assets import PREFIX as PAGE_PREFIX

OPEN_PATHS = frozenset({"/health", "/ready", "/"})
"""Answered without a key and while draining; so are the page's files, which ask for a key themselves."""


def error_response(path: str, error: ApiError) -> JSONResponse:
    """The error in the envelope of the dialect that `path` belongs to."""
    return JSONResponse(envelope(path, error), error.status_code, error.headers)


class Guard:
    """Refuses what may not pass, counts answers, and makes bodies JSON.

    Order: key (401), draining (503), length (413); a body without a length is cut off while it is read.
    """

    def __init__(self, app: ASGIApp, gateway: Gateway) -> None:
        self._app = app
        self._gateway = gateway
        self._digests = [digest.lower().encode() for digest in gateway.config.api_keys]
        self._max_body = gateway.config.max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refusal = self._refusal(scope, headers)
        counted = self._counted(scope, send)
        if refusal is not None:
            await error_response(scope["path"], refusal)(scope, receive, counted)
            return
        if scope["method"] == "POST":
            _assume_json(scope, headers)
        await self._app(scope, _Limited(receive, self._max_body), counted)

    def _refusal(self, scope: Scope, headers: Headers) -> ApiError | None:
        path = scope["path"]
        if path in OPEN_PATHS or path.startswith(PAGE_PREFIX) or scope["method"] == "OPTIONS":
            return None
        if self._digests and not self._has_key(headers):
            return ApiError(401, "no valid API key was given", code="invalid_api_key")
        if self._gateway.is_draining and scope["method"] == "POST":
            return ApiError(
                503, "the server is shutting down", code="shutting_down", retry_after=RETRY_AFTER_S
            )
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > self._max_body:
            return too_large(self._max_body)
        return None

    def _has_key(self, headers: Headers) -> bool:
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        given = [headers.get("x-api-key", ""), bearer if scheme.lower() == "bearer" else ""]
        digests = [hashlib.sha256(key.strip().encode()).hexdigest().encode() for key in given if key]
        # No early exit: the time must not tell which key came close.
        matches = [hmac.compare_digest(mine, theirs) for mine in self._digests for theirs in digests]
        return any(matches)

    def _counted(self, scope: Scope, send: Send) -> Send:
        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = scope.get("route")
                path = getattr(route, "path", "unknown")
                self._gateway.metrics.http.labels(path, message["status"]).inc()
            await send(message)

        return counted


class _Limited:
    """Counts a body's bytes while it is read."""

    def __init__(self, receive: Receive, max_body: int) -> None:
        self._receive = receive
        self._max_body = max_body
        self._read = 0

    async def __call__(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._read += len(message.get("body", b""))
            if self._read > self._max_body:
                raise too_large(self._max_body)
        return message


def too_large(limit: int) -> ApiError:
    """The 413."""
    return ApiError(413, f"the request body is larger than {limit} bytes", code="request_too_large")


def _assume_json(scope: Scope, headers: Headers) -> None:
    """Every body here is JSON, and `curl -d` says otherwise.

    Not for browsers: there the content type is what makes a foreign page ask for permission first.
    """
    if "origin" not in headers and "json" not in headers.get("content-type", ""):
        MutableHeaders(scope=scope)["content-type"] = "application/json"
