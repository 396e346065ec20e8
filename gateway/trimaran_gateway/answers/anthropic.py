"""`/v1/messages`: the whole message and its event stream."""

from __future__ import annotations

import base64
import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing
from hashlib import blake2b
from typing import Any

from trimaran_gateway import sse
from trimaran_gateway.errors import ApiError, envelope
from trimaran_gateway.output.arguments import parse_arguments
from trimaran_gateway.output.collect import Answer, CollectedCall
from trimaran_gateway.output.events import (
    Event,
    Finished,
    Progress,
    TextDelta,
    TokenUsage,
    ToolCallDelta,
    ToolCallStart,
)

PING = sse.named("ping", {"type": "ping"})

_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
_THINKING = {"type": "thinking", "thinking": "", "signature": ""}
_TEXT = {"type": "text", "text": ""}


def thinking_signature(thought: str) -> str:
    """What clients hand back with a thinking block: a digest that names the text, and proves nothing.

    Some clients keep no thinking block whose signature is empty. Blocks of any signature are taken back: in a
    conversation that another server began the signatures are that server's.
    """
    return base64.b64encode(blake2b(thought.encode(), digest_size=32).digest()).decode()


def error_event(error: ApiError) -> bytes:
    """The last event of a stream that failed."""
    return sse.named("error", envelope("/v1/messages", error))


def new_message(model: str, prompt_tokens: int) -> dict[str, Any]:
    """An empty message; it opens a stream."""
    return {
        "id": f"msg_{secrets.token_hex(12)}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": _usage(TokenUsage(prompt_tokens, 0)),
    }


def whole_message(model: str, answer: Answer, *, show_thinking: bool) -> dict[str, Any]:
    """The message object."""
    content: list[dict[str, Any]] = []
    if answer.reasoning and show_thinking:
        signature = thinking_signature(answer.reasoning)
        content.append({**_THINKING, "thinking": answer.reasoning, "signature": signature})
    if answer.content:
        content.append({**_TEXT, "text": answer.content})
    calls = answer.calls[:-1] if answer.reason == "length" else answer.calls  # the last one is cut
    content += [_tool_use(call) for call in calls]
    return {
        **new_message(model, answer.usage.prompt_tokens),
        "content": content,
        **_stop(answer.reason, answer.stop_sequence),
        "usage": _usage(answer.usage),
    }


class MessageStream:
    """Makes the events of one message: blocks open and close one after the other.

    Args:
        model: the model's name.
        prompt_tokens: length of the prompt.
        show_thinking: whether the client asked for the reasoning.
    """

    def __init__(self, model: str, prompt_tokens: int, *, show_thinking: bool) -> None:
        self._message = new_message(model, prompt_tokens)
        self._show_thinking = show_thinking
        self._index = -1
        self._open: str | None = None
        self._thought = ""

    async def chunks(self, events: AsyncGenerator[tuple[int, Event]]) -> AsyncGenerator[bytes]:
        """Server-sent events from `message_start` to `message_stop`."""
        is_first = True
        async with aclosing(events):
            async for _, event in events:
                if is_first:
                    yield sse.named("message_start", {"type": "message_start", "message": self._message})
                    is_first = False
                for chunk in self._of(event):
                    yield chunk

    def _of(self, event: Event) -> list[bytes]:
        match event:
            case TextDelta("reasoning", text):
                if not (self._show_thinking and text):
                    return []
                self._thought += text
                delta = {"type": "thinking_delta", "thinking": text}
                return [*self._enter("thinking", _THINKING), self._delta(delta)]
            case TextDelta(_, text):
                return [*self._enter("text", _TEXT), self._delta({"type": "text_delta", "text": text})]
            case ToolCallStart(_, call_id, name):
                block = {"type": "tool_use", "id": _tool_id(call_id), "name": name, "input": {}}
                return [*self._close(), *self._enter("tool_use", block)]
            case ToolCallDelta(_, text):
                return [self._delta({"type": "input_json_delta", "partial_json": text})]
            case Progress():
                return []
            case Finished(reason, usage, stop_sequence):
                stop = _stop(reason, stop_sequence)
                last = {"type": "message_delta", "delta": stop, "usage": _usage(usage)}
                end = sse.named("message_stop", {"type": "message_stop"})
                return [*self._close(), sse.named("message_delta", last), end]

    def _enter(self, kind: str, block: dict[str, Any]) -> list[bytes]:
        """Opens a block of this kind unless one is open."""
        if self._open == kind:
            return []
        closed = self._close()
        self._open = kind
        self._index += 1
        start = {"type": "content_block_start", "index": self._index, "content_block": block}
        return [*closed, sse.named("content_block_start", start)]

    def _close(self) -> list[bytes]:
        if self._open is None:
            return []
        signed = []
        if self._open == "thinking":
            signature = thinking_signature(self._thought)
            signed = [self._delta({"type": "signature_delta", "signature": signature})]
        self._open, self._thought = None, ""
        stop = {"type": "content_block_stop", "index": self._index}
        return [*signed, sse.named("content_block_stop", stop)]

    def _delta(self, delta: dict[str, Any]) -> bytes:
        value = {"type": "content_block_delta", "index": self._index, "delta": delta}
        return sse.named("content_block_delta", value)


def _stop(reason: str, stop_sequence: str | None) -> dict[str, Any]:
    name = "stop_sequence" if stop_sequence is not None else _STOP_REASONS[reason]
    return {"stop_reason": name, "stop_sequence": stop_sequence}


def _tool_use(call: CollectedCall) -> dict[str, Any]:
    arguments = parse_arguments(call.name, call.arguments)
    return {"type": "tool_use", "id": _tool_id(call.call_id), "name": call.name, "input": arguments}


def _tool_id(call_id: str) -> str:
    return f"toolu_{call_id.removeprefix('call_')}"


def _usage(usage: TokenUsage) -> dict[str, int]:
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }
