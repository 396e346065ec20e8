"""Ollama's answers: lines of JSON, durations in nanoseconds."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

from trimaran_gateway.errors import ApiError
from trimaran_gateway.output.arguments import parse_arguments
from trimaran_gateway.output.events import (
    Event,
    Finished,
    Progress,
    TextDelta,
    TokenUsage,
    ToolCallDelta,
    ToolCallStart,
)

MEDIA_TYPE = "application/x-ndjson"
_encoder = msgspec.json.Encoder()


@dataclass
class OllamaAnswer:
    """Makes the objects of one answer, in the form of `/api/chat` or of `/api/generate`.

    Args:
        kind: which of the two.
        model: the model's name as the client gave it.
        context: ids of the prompt, for `/api/generate`; the generated ones join it.
    """

    kind: Literal["chat", "generate"]
    model: str
    context: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._started = time.perf_counter_ns()
        self._call: tuple[str, str] | None = None

    async def parts(self, events: AsyncGenerator[tuple[int, Event]]) -> AsyncGenerator[dict[str, Any]]:
        """The objects, the last one with `done`."""
        async with aclosing(events):
            async for _, event in events:
                for part in self._of(event):
                    yield part

    async def lines(self, events: AsyncGenerator[tuple[int, Event]]) -> AsyncGenerator[bytes]:
        """The objects as lines."""
        async with aclosing(self.parts(events)) as parts:
            async for part in parts:
                yield line(part)

    async def whole(self, events: AsyncGenerator[tuple[int, Event]]) -> dict[str, Any]:
        """All of it as one object."""
        texts: dict[str, str] = {"text": "", "thinking": ""}
        calls: list[dict[str, Any]] = []
        part: dict[str, Any] = {}
        async with aclosing(self.parts(events)) as parts:
            async for part in parts:
                message = part.get("message", part)
                texts["text"] += message.get("content", message.get("response", ""))
                texts["thinking"] += message.get("thinking", "")
                calls += message.get("tool_calls", [])
        return {**part, **self._body(texts["text"], texts["thinking"], calls)}

    def idle(self, reason: Literal["load", "unload"]) -> dict[str, Any]:
        """The answer to a request without a prompt."""
        return {**self._head(), **self._body("", "", []), "done": True, "done_reason": reason}

    def _of(self, event: Event) -> list[dict[str, Any]]:
        match event:
            case TextDelta("reasoning", text):
                return [self._part("", text, self._end_call())]
            case TextDelta(_, text):
                return [self._part(text, "", self._end_call())]
            case ToolCallStart(_, _, name):
                finished = self._end_call()
                self._call = (name, "")
                return [self._part("", "", finished)] if finished else []
            case ToolCallDelta(_, text):
                assert self._call is not None
                self._call = (self._call[0], self._call[1] + text)
                return []
            case Progress(_, ids):
                self.context += ids
                return []
            case Finished():
                return self._last(event)

    def _last(self, event: Finished) -> list[dict[str, Any]]:
        calls = [] if event.reason == "length" else self._end_call()
        parts = [self._part("", "", calls)] if calls else []
        reason = "length" if event.reason == "length" else "stop"
        last = {**self._head(), **self._body("", "", []), "done": True, "done_reason": reason}
        if self.kind == "generate":
            last["context"] = self.context
        return [*parts, {**last, **self._durations(event.usage)}]

    def _end_call(self) -> list[dict[str, Any]]:
        """The call that was open, whole: Ollama's arguments are an object, not text."""
        if self._call is None:
            return []
        (name, text), self._call = self._call, None
        arguments = parse_arguments(name, text)
        return [{"function": {"name": name, "arguments": arguments}}]

    def _part(self, text: str, thinking: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._head(), **self._body(text, thinking, calls), "done": False}

    def _head(self) -> dict[str, Any]:
        return {"model": self.model, "created_at": timestamp(datetime.now(UTC))}

    def _body(self, text: str, thinking: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
        extra: dict[str, Any] = {"thinking": thinking} if thinking else {}
        if self.kind == "generate":
            return {"response": text, **extra}
        if calls:
            extra["tool_calls"] = calls
        return {"message": {"role": "assistant", "content": text, **extra}}

    def _durations(self, usage: TokenUsage) -> dict[str, int]:
        return {
            "total_duration": time.perf_counter_ns() - self._started,
            "load_duration": _nanoseconds(usage.queue_s),
            "prompt_eval_count": usage.prompt_tokens,
            "prompt_eval_duration": _nanoseconds(usage.prefill_s),
            "eval_count": usage.completion_tokens,
            "eval_duration": _nanoseconds(usage.decode_s),
        }


def line(value: dict[str, Any]) -> bytes:
    """One line of an NDJSON stream."""
    return _encoder.encode(value) + b"\n"


def error_line(error: ApiError) -> bytes:
    """The last line of a stream that failed."""
    return line({"error": error.message})


def timestamp(moment: datetime) -> str:
    """RFC 3339, as Go writes it."""
    return moment.isoformat().replace("+00:00", "Z")


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
