"""A small client of the gateway's HTTP API, on the standard library alone."""

from __future__ import annotations

import http
import http.client
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from trimaran.errors import ConfigError, PeerError, RequestError

_ADDRESS = "write it as http://127.0.0.1:8000"


@dataclass(frozen=True)
class Health:
    """What `/health` says.

    Attributes:
        answers: it takes requests, though perhaps in a degraded state.
        ready: all of it works.
        state, detail: in the server's words.
        progress: 0 to 1 while a model loads.
    """

    answers: bool
    ready: bool
    state: str
    detail: str
    progress: float | None


@dataclass(frozen=True)
class Delta:
    """A piece of a streamed answer: of its reasoning, or of what it says."""

    text: str
    reasoning: bool


@dataclass(frozen=True)
class Usage:
    """Token counts of an answer."""

    prompt_tokens: int
    completion_tokens: int


class ApiClient:
    """Talks to one server.

    Args:
        url: base address, e.g. `http://127.0.0.1:8000`; a trailing `/v1` is fine.
        key: API key, when the server asks for one.
        timeout_s: longest silence of the server that is waited through.

    Raises:
        ConfigError: the address or the key cannot be one.
    """

    def __init__(self, url: str, key: str | None = None, *, timeout_s: float = 600.0) -> None:
        self._scheme, self._host, self._port = _address(url)
        netloc = self._host if ":" not in self._host else f"[{self._host}]"
        self.url = f"{self._scheme}://{netloc}" + ("" if self._port is None else f":{self._port}")
        self.usage: Usage | None = None
        self._key = _checked_key(key)
        self._timeout_s = timeout_s

    @property
    def has_key(self) -> bool:
        """Whether requests carry an API key."""
        return self._key is not None

    def health(self, *, timeout_s: float = 5.0) -> Health | None:
        """The server's state, or None when nobody answers."""
        try:
            with self._request("GET", "/health", timeout_s=timeout_s) as response:
                body = json.loads(response.read(1 << 16))
                status = response.status
        except (PeerError, OSError, http.client.HTTPException, ValueError):
            return None
        fields = body if isinstance(body, dict) else {}
        progress = fields.get("progress")
        state = str(fields.get("status") or "")
        return Health(
            answers=status == 200,
            ready=status == 200 and state != "degraded",
            state=state,
            detail=str(fields.get("detail") or ""),
            progress=float(progress) if isinstance(progress, (int, float)) else None,
        )

    def model(self) -> str:
        """The name of the model that the server serves.

        Raises:
            PeerError: nobody answers, or no Trimaran.
            RequestError: the server refuses us.
        """
        with self._request("GET", "/v1/models") as response:
            body = _checked(response)
        try:
            return str(body["data"][0]["id"])
        except (KeyError, IndexError, TypeError) as error:
            raise PeerError(f"{self.url} lists no model", remedy="is this a Trimaran server?") from error

    def chat(self, messages: Sequence[dict[str, str]], **parameters: object) -> Iterator[Delta]:
        """Streams the answer to a conversation; `usage` holds its token counts afterwards.

        Args:
            messages: role and content of each message so far.
            parameters: more fields of the request, e.g. `max_tokens=64`.

        Raises:
            PeerError: the connection fails or breaks.
            RequestError: the server refuses the request.
        """
        self.usage = None
        body = {
            "messages": list(messages),
            "stream": True,
            "stream_options": {"include_usage": True},
            **parameters,
        }
        with self._request("POST", "/v1/chat/completions", body) as response:
            if response.status != 200:
                _checked(response)
            try:
                for event in _events(response):
                    yield from self._deltas(event)
            except (OSError, http.client.HTTPException) as error:
                raise PeerError(f"{self.url} broke off the answer: {error}") from error

    def _deltas(self, event: dict[str, Any]) -> Iterator[Delta]:
        if "error" in event:
            raise _request_error(event, 500)
        if usage := event.get("usage"):
            self.usage = Usage(usage["prompt_tokens"], usage["completion_tokens"])
        for choice in event.get("choices", []):
            delta = choice.get("delta", {})
            if text := delta.get("reasoning_content"):
                yield Delta(text, reasoning=True)
            if text := delta.get("content"):
                yield Delta(text, reasoning=False)

    def _request(
        self, method: str, path: str, body: object = None, *, timeout_s: float | None = None
    ) -> _Exchange:
        kind = http.client.HTTPSConnection if self._scheme == "https" else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=timeout_s or self._timeout_s)
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            return _Exchange(connection, connection.getresponse())
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            reason = str(error) or type(error).__name__
            raise PeerError(f"{self.url} does not answer: {reason}", remedy="is the server up?") from error


class _Exchange:
    """A response whose connection closes with the `with` block."""

    def __init__(self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse) -> None:
        self._connection = connection
        self._response = response

    def __enter__(self) -> http.client.HTTPResponse:
        return self._response

    def __exit__(self, *_: object) -> None:
        self._response.close()
        self._connection.close()


def _address(url: str) -> tuple[str, str, int | None]:
    """Scheme, host and port."""
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"{url!r} is no HTTP address: {error}", remedy=_ADDRESS) from error
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ConfigError(f"{url!r} is no HTTP address", remedy=_ADDRESS)
    if parts.path.rstrip("/") not in {"", "/v1"}:
        raise ConfigError(f"{url!r} has the path {parts.path}, but the API is at the root", remedy=_ADDRESS)
    return parts.scheme, parts.hostname, port


def _checked_key(key: str | None) -> str | None:
    """A key that fits in a header."""
    if key is not None and not (key.isprintable() and all(ord(character) < 256 for character in key)):
        raise ConfigError(
            "the API key has characters that no HTTP header takes", remedy="check --key and TRIMARAN_API_KEY"
        )
    return key


def _checked(response: http.client.HTTPResponse) -> Any:
    """The body of a good response, as JSON."""
    text = response.read(1 << 20)
    try:
        body = json.loads(text)
    except ValueError as error:
        raise PeerError(f"the server answered {response.status} and no JSON") from error
    if response.status != 200:
        raise _request_error(body, response.status)
    return body


def _request_error(body: Any, status: int) -> RequestError:
    error = body.get("error") if isinstance(body, dict) else None
    fields = error if isinstance(error, dict) else {}
    message = str(fields.get("message") or f"the server answered {status}")
    if status == http.HTTPStatus.UNAUTHORIZED:
        message += " (give one with --key or TRIMARAN_API_KEY)"
    return RequestError(message, code=str(fields.get("code") or status))


def _events(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """The JSON objects of a server-sent event stream, until `[DONE]`."""
    while line := response.readline():
        name, _, data = line.decode(errors="replace").strip().partition(":")
        if name != "data":
            continue
        if data.strip() == "[DONE]":
            return
        try:
            event = json.loads(data)
        except ValueError as error:
            raise PeerError(f"the server streamed no JSON: {data[:80]!r}") from error
        if isinstance(event, dict):
            yield event
