"""What a request passes before its route: keys, draining, limits. Plain ASGI: streams stay streams."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Sequence
from contextlib import nullcontext

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trimaran_gateway.context import Gateway
from trimaran_gateway.errors import RETRY_AFTER_S, ApiError, bad_request, envelope
from trimaran_gateway.json_depth import is_deeper
from trimaran_gateway.limits import ClientLimits, address_of
from trimaran_gateway.web.assets import PREFIX as PAGE_PREFIX

OPEN_PATHS = frozenset({"/health", "/ready", "/", "/docs", "/openapi.json"})
"""Answered without a key and while draining; so are the page's files, which ask for a key themselves."""

MAX_HEADERS = 128
MAX_HEADER_BYTES = 64 << 10
MAX_JSON_DEPTH = 64
BODY_TIMEOUT_S = 120.0
"""Time for a whole body; the largest one by default takes half of it at 1.2 Mbit/s."""


def error_response(path: str, error: ApiError) -> JSONResponse:
    """The error in the envelope of the dialect that `path` belongs to."""
    return JSONResponse(envelope(path, error), error.status_code, error.headers)


class Guard:
    """Refuses what may not pass, counts answers, and makes bodies JSON.

    Order: headers (431), key (401), draining (503), length (413), the client's limits (429), which are for
    POSTs. A body without a length is cut off while it is read, one that does not end in time is a 408, and
    one that is nested too deeply a 400.
    """

    def __init__(self, app: ASGIApp, gateway: Gateway) -> None:
        self._app = app
        self._gateway = gateway
        self._digests = [digest.lower().encode() for digest in gateway.config.api_keys]
        self._max_body = gateway.config.max_body_bytes
        self._limits = ClientLimits(gateway.config)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        counted = self._counted(scope, send)
        try:
            client = self._check(scope, Headers(scope=scope))
            with self._limits.admitted(client) if scope["method"] == "POST" else nullcontext():
                await self._app(scope, _Limited(receive, self._max_body), counted)
        except ApiError as refusal:  # the app answers its own
            await error_response(scope["path"], refusal)(scope, receive, counted)

    def _check(self, scope: Scope, headers: Headers) -> str:
        """Refuse, or make the request ready for its route.

        Returns:
            the client's name.

        Raises:
            ApiError: it may not pass.
        """
        _check_headers(scope["headers"])
        client, path = address_of(scope.get("client")), scope["path"]
        if path in OPEN_PATHS or path.startswith(PAGE_PREFIX) or scope["method"] == "OPTIONS":
            return client
        if self._digests:
            client = self._key(headers)
        if scope["method"] == "POST":
            if self._gateway.is_draining:
                message = "the server is shutting down"
                raise ApiError(503, message, code="shutting_down", retry_after=RETRY_AFTER_S)
            _assume_json(scope, headers)
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > self._max_body:
            raise too_large(self._max_body)
        return client

    def _key(self, headers: Headers) -> str:
        """The digest of the key that was given, if it is one of ours."""
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        given = [headers.get("x-api-key", ""), bearer if scheme.lower() == "bearer" else ""]
        digests = [hashlib.sha256(key.strip().encode()).hexdigest().encode() for key in given if key]
        # No early exit: the time must not tell which key came close.
        pairs = [(mine, theirs) for mine in self._digests for theirs in digests]
        matches = [mine for mine, theirs in pairs if hmac.compare_digest(mine, theirs)]
        if not matches:
            raise ApiError(401, "no valid API key was given", code="invalid_api_key")
        return matches[0].decode()

    def _counted(self, scope: Scope, send: Send) -> Send:
        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = scope.get("route")
                path = getattr(route, "path", "unknown")
                self._gateway.metrics.http.labels(path, message["status"]).inc()
            await send(message)

        return counted


class _Limited:
    """Counts a body's bytes and bounds its time while it is read, and looks at the end how deep it is."""

    def __init__(self, receive: Receive, max_body: int) -> None:
        self._receive = receive
        self._max_body = max_body
        self._deadline: float | None = asyncio.get_running_loop().time() + BODY_TIMEOUT_S
        self._read = 0
        self._parts: list[bytes] = []

    async def __call__(self) -> Message:
        message = await self._in_time()
        if message["type"] == "http.request":
            self._take(message.get("body", b""))
            if not message.get("more_body", False):
                self._end()
        return message

    async def _in_time(self) -> Message:
        try:
            async with asyncio.timeout_at(self._deadline):
                return await self._receive()
        except TimeoutError:
            message = f"the request body did not arrive within {BODY_TIMEOUT_S:g} s"
            raise ApiError(408, message, code="request_timeout") from None

    def _take(self, part: bytes) -> None:
        self._read += len(part)
        if self._read > self._max_body:
            raise too_large(self._max_body)
        self._parts.append(part)

    def _end(self) -> None:
        body, self._parts = b"".join(self._parts), []
        self._deadline = None  # what comes now is the client's leaving
        if is_deeper(body, MAX_JSON_DEPTH):
            raise bad_request(
                f"the body is nested more than {MAX_JSON_DEPTH} levels deep", code="invalid_json"
            )


def too_large(limit: int) -> ApiError:
    """The 413."""
    return ApiError(413, f"the request body is larger than {limit} bytes", code="request_too_large")


def _check_headers(headers: Sequence[tuple[bytes, bytes]]) -> None:
    if len(headers) > MAX_HEADERS:
        raise ApiError(431, f"the request has more than {MAX_HEADERS} headers", code="too_many_headers")
    if sum(len(name) + len(value) for name, value in headers) > MAX_HEADER_BYTES:
        raise ApiError(431, f"the headers are larger than {MAX_HEADER_BYTES} bytes", code="headers_too_large")


def _assume_json(scope: Scope, headers: Headers) -> None:
    """Every body here is JSON, and `curl -d` says otherwise.

    Not for browsers: there the content type is what makes a foreign page ask for permission first.
    """
    if "origin" not in headers and "json" not in headers.get("content-type", ""):
        MutableHeaders(scope=scope)["content-type"] = "application/json"
