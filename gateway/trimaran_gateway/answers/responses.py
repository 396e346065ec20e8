"""`/v1/responses`: output items, and the events that tell of their growth."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from trimaran_gateway import sse
from trimaran_gateway.errors import ApiError
from trimaran_gateway.output.events import (
    Event,
    Finished,
    Progress,
    TextDelta,
    TokenUsage,
    ToolCallDelta,
    ToolCallStart,
)
from trimaran_gateway.schemas.responses import ResponsesRequest

Json = dict[str, Any]

_PARTS: dict[str, tuple[str, Json]] = {
    "message": ("output_text", {"annotations": [], "logprobs": []}),
    "reasoning": ("reasoning_text", {}),
}
"""Item type → type of its content part and the part's constant fields."""

_ITEM_FIELDS: dict[str, Json] = {"message": {"role": "assistant"}, "reasoning": {"summary": []}}


class ResponseStream:
    """Builds one response; its items open and close one after the other.

    Args:
        body: the request, whose settings the response repeats.
        model: the model's name.
    """

    def __init__(self, body: ResponsesRequest, model: str) -> None:
        self._sequence = 0
        self._item: Json | None = None
        self._text = ""
        self.response: Json = {
            "id": _new_id("resp"),
            "object": "response",
            "created_at": int(time.time()),
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": model,
            "output": [],
            "parallel_tool_calls": body.parallel_tool_calls,
            "previous_response_id": None,
            "reasoning": {"effort": body.reasoning.effort if body.reasoning else None, "summary": None},
            "store": False,
            "temperature": 1.0 if body.temperature is None else body.temperature,
            "text": {"format": _text_format(body)},
            "tool_choice": body.model_dump()["tool_choice"],
            "tools": [tool.model_dump() for tool in body.tools or []],
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "truncation": "disabled",
            "usage": None,
            "user": body.user,
        }

    async def whole(self, events: AsyncGenerator[tuple[int, Event]]) -> Json:
        """The finished response."""
        async with aclosing(events):
            async for _, event in events:
                self._of(event)
        return self.response

    async def chunks(self, events: AsyncGenerator[tuple[int, Event]]) -> AsyncGenerator[bytes]:
        """Server-sent events from `response.created` to `response.completed` (or `.incomplete`)."""
        is_first = True
        async with aclosing(events):
            async for _, event in events:
                if is_first:
                    for kind in ("response.created", "response.in_progress"):
                        yield self._event(kind, response=self.response)
                    is_first = False
                for chunk in self._of(event):
                    yield chunk

    def failed(self, error: ApiError) -> bytes:
        """The last event of a stream that failed."""
        return self._event("error", code=error.code, message=error.message, param=error.param)

    def _of(self, event: Event) -> list[bytes]:
        match event:
            case TextDelta(kind, text, _):
                return self._grow("reasoning" if kind == "reasoning" else "message", text) if text else []
            case ToolCallStart(_, call_id, name):
                item = {"type": "function_call", "id": _new_id("fc"), "call_id": call_id, "name": name}
                return [*self._close(), *self._open({**item, "arguments": ""})]
            case ToolCallDelta(_, text):
                self._text += text
                return [self._item_event("response.function_call_arguments.delta", delta=text)]
            case Progress():
                return []
            case Finished():
                return self._finish(event)

    def _grow(self, kind: str, text: str) -> list[bytes]:
        chunks = []
        if self._item is None or self._item["type"] != kind:
            chunks += self._close()
            item: Json = {"type": kind, "id": _new_id("msg" if kind == "message" else "rs"), "content": []}
            item |= _ITEM_FIELDS[kind]
            chunks += self._open(item)
            part = self._part("")
            chunks.append(self._item_event("response.content_part.added", content_index=0, part=part))
        self._text += text
        name = _PARTS[kind][0]
        extra: Json = {"logprobs": []} if kind == "message" else {}
        delta = self._item_event(f"response.{name}.delta", content_index=0, delta=text, **extra)
        return [*chunks, delta]

    def _open(self, item: Json) -> list[bytes]:
        self._item, self._text = {**item, "status": "in_progress"}, ""
        index = len(self.response["output"])
        return [self._event("response.output_item.added", output_index=index, item=self._item)]

    def _close(self, status: str = "completed") -> list[bytes]:
        if self._item is None:
            return []
        if self._item["type"] == "function_call":
            self._item["arguments"] = self._text
            arguments = {"arguments": self._text, "name": self._item["name"]}
            chunks = [self._item_event("response.function_call_arguments.done", **arguments)]
        else:
            part = self._part(self._text)
            self._item["content"] = [part]
            extra: Json = {"logprobs": []} if self._item["type"] == "message" else {}
            done = f"response.{part['type']}.done"
            chunks = [
                self._item_event(done, content_index=0, text=self._text, **extra),
                self._item_event("response.content_part.done", content_index=0, part=part),
            ]
        self._item["status"] = status
        index = len(self.response["output"])
        chunks.append(self._event("response.output_item.done", output_index=index, item=self._item))
        self.response["output"].append(self._item)
        self._item = None
        return chunks

    def _finish(self, event: Finished) -> list[bytes]:
        status = "incomplete" if event.reason == "length" else "completed"
        chunks = self._close(status)
        self.response |= {"status": status, "usage": _usage(event.usage)}
        if status == "incomplete":
            self.response["incomplete_details"] = {"reason": "max_output_tokens"}
        return [*chunks, self._event(f"response.{status}", response=self.response)]

    def _part(self, text: str) -> Json:
        assert self._item is not None
        name, extra = _PARTS[self._item["type"]]
        return {"type": name, "text": text, **extra}

    def _item_event(self, kind: str, **fields: Any) -> bytes:
        assert self._item is not None
        index = len(self.response["output"])
        return self._event(kind, item_id=self._item["id"], output_index=index, **fields)

    def _event(self, kind: str, **fields: Any) -> bytes:
        self._sequence += 1
        return sse.named(kind, {"type": kind, "sequence_number": self._sequence - 1, **fields})


def _usage(usage: TokenUsage) -> Json:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def _text_format(body: ResponsesRequest) -> Json:
    """The form of the answer as the request gave it."""
    if body.text is None or body.text.format is None:
        return {"type": "text"}
    return body.text.format.model_dump(by_alias=True, exclude_none=True)


def _new_id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(12)}"
