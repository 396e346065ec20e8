"""`/v1/chat/completions`: the whole answer and the stream of chunks."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from trimaran_gateway import sse
from trimaran_gateway.answers.openai import AnswerHead, usage_body
from trimaran_gateway.answers.token_logprobs import chat_logprobs, prompt_logprobs
from trimaran_gateway.output.collect import Answer, total_usage
from trimaran_gateway.output.events import (
    Event,
    Finished,
    Parsed,
    Progress,
    TextDelta,
    TokenUsage,
    ToolCallDelta,
    ToolCallStart,
)
from trimaran_gateway.text.vocabulary import Vocabulary


@dataclass(frozen=True)
class ChatAnswerOptions:
    """How the client wants its answer; `prompt_logprobs` is how many alternatives, None without."""

    logprobs: bool = False
    prompt_logprobs: int | None = None
    include_usage: bool = False
    continuous_usage: bool = False


def chat_answer(
    head: AnswerHead, answers: list[Answer], vocabulary: Vocabulary, options: ChatAnswerOptions
) -> dict[str, Any]:
    """A `chat.completion` object."""
    choices = [_choice(index, answer, vocabulary, options) for index, answer in enumerate(answers)]
    usage = total_usage([answer.usage for answer in answers])
    body = {**head.fields("chat.completion"), "choices": choices, "usage": usage_body(usage)}
    if options.prompt_logprobs is not None:
        entries = answers[0].prompt_entries
        body["prompt_logprobs"] = prompt_logprobs(vocabulary, entries, options.prompt_logprobs)
    return body


async def chat_chunks(
    head: AnswerHead,
    events: AsyncGenerator[tuple[int, Event]],
    vocabulary: Vocabulary,
    options: ChatAnswerOptions,
) -> AsyncGenerator[bytes]:
    """Server-sent `chat.completion.chunk` events, ending in `[DONE]`."""
    chunks = _ChunkMaker(head, vocabulary, options)
    async with aclosing(events):
        async for index, event in events:
            for chunk in chunks.of(index, event):
                yield sse.data(chunk)
    if options.include_usage:
        yield sse.data(chunks.usage())
    yield sse.DONE


class _ChunkMaker:
    """Keeps what depends on earlier chunks: the role is sent once per choice, usage grows."""

    def __init__(self, head: AnswerHead, vocabulary: Vocabulary, options: ChatAnswerOptions) -> None:
        self._head = head.fields("chat.completion.chunk")
        self._vocabulary = vocabulary
        self._options = options
        self._usages: dict[int, TokenUsage] = {}
        self._begun: set[int] = set()

    def of(self, index: int, event: Event) -> list[dict[str, Any]]:
        """The chunks of one event."""
        if isinstance(event, Progress):
            self._usages[index] = event.usage
            return []
        first = [] if index in self._begun else [self._chunk(index, {"role": "assistant", "content": ""})]
        self._begun.add(index)
        if isinstance(event, Finished):
            self._usages[index] = event.usage
            return [*first, self._chunk(index, {}, finish_reason=event.reason)]
        chunk = self._chunk(index, _delta(event))
        if self._options.logprobs and isinstance(event, TextDelta) and _is_answer(event):
            chunk["choices"][0]["logprobs"] = chat_logprobs(self._vocabulary, event.entries)
        return [*first, chunk]

    def usage(self) -> dict[str, Any]:
        """The last chunk, without choices."""
        return {**self._head, "choices": [], "usage": usage_body(total_usage(list(self._usages.values())))}

    def _chunk(self, index: int, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        chunk = {**self._head, "choices": [choice]}
        if self._options.continuous_usage and self._usages:
            chunk["usage"] = usage_body(total_usage(list(self._usages.values())))
        elif self._options.include_usage:
            chunk["usage"] = None
        return chunk


def _is_answer(event: TextDelta) -> bool:
    """Whether it has tokens to tell: those of the reasoning are none of the content's."""
    return event.kind == "content" and bool(event.entries)


def _delta(event: Parsed) -> dict[str, Any]:
    match event:
        case TextDelta("reasoning", text):
            return {"reasoning_content": text, "reasoning": text}
        case TextDelta(_, text):
            return {"content": text}
        case ToolCallStart(index, call_id, name):
            function = {"name": name, "arguments": ""}
            return {"tool_calls": [{"index": index, "id": call_id, "type": "function", "function": function}]}
        case ToolCallDelta(index, text):
            return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}


def _choice(index: int, answer: Answer, vocabulary: Vocabulary, options: ChatAnswerOptions) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": answer.content or None, "refusal": None}
    if not answer.calls:
        message["content"] = answer.content
    if answer.reasoning:
        message["reasoning_content"] = message["reasoning"] = answer.reasoning
    if answer.calls:
        message["tool_calls"] = [
            {
                "id": call.call_id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in answer.calls
        ]
    return {
        "index": index,
        "message": message,
        "logprobs": chat_logprobs(vocabulary, answer.entries) if options.logprobs else None,
        "finish_reason": answer.reason,
    }
