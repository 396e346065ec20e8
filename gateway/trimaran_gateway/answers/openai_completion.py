"""`/v1/completions`: the whole answer and the stream of chunks."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from trimaran_gateway import sse
from trimaran_gateway.answers.openai import AnswerHead, token_text, usage_body
from trimaran_gateway.output.collect import Answer, total_usage
from trimaran_gateway.output.events import Event, Finished, Progress, TextDelta, TokenEntry, TokenUsage
from trimaran_gateway.text.vocabulary import Vocabulary


@dataclass(frozen=True)
class CompletionAnswerOptions:
    """How the client wants its answer.

    Attributes:
        echo: one text per choice to put in front of it; empty strings without `echo`.
        per_prompt: how many consecutive choices belong to one prompt.
    """

    echo: tuple[str, ...]
    per_prompt: int = 1
    logprobs: bool = False
    include_usage: bool = False
    continuous_usage: bool = False


def completion_answer(
    head: AnswerHead, answers: list[Answer], vocabulary: Vocabulary, options: CompletionAnswerOptions
) -> dict[str, Any]:
    """A `text_completion` object."""
    choices = []
    for index, answer in enumerate(answers):
        logprobs = TextLogprobs(vocabulary).add(answer.entries) if options.logprobs else None
        text = options.echo[index] + answer.content
        choices.append(_choice(index, text, logprobs, answer.reason))
    usage = _total({index: answer.usage for index, answer in enumerate(answers)}, options.per_prompt)
    return {**head.fields("text_completion"), "choices": choices, "usage": usage}


async def completion_chunks(
    head: AnswerHead,
    events: AsyncGenerator[tuple[int, Event]],
    vocabulary: Vocabulary,
    options: CompletionAnswerOptions,
) -> AsyncGenerator[bytes]:
    """Server-sent `text_completion` events, ending in `[DONE]`."""
    fields = head.fields("text_completion")
    usages: dict[int, TokenUsage] = {}
    logprobs = [TextLogprobs(vocabulary) for _ in options.echo]
    for index, text in enumerate(options.echo):
        if text:
            yield sse.data({**fields, "choices": [_choice(index, text, None, None)]})
    async with aclosing(events):
        async for index, event in events:
            if isinstance(event, (Progress, Finished)):
                usages[index] = event.usage
            choice = _event_choice(index, event, logprobs[index] if options.logprobs else None)
            if choice is None:
                continue
            chunk = {**fields, "choices": [choice]}
            if options.continuous_usage and usages:
                chunk["usage"] = _total(usages, options.per_prompt)
            elif options.include_usage:
                chunk["usage"] = None
            yield sse.data(chunk)
    if options.include_usage:
        yield sse.data({**fields, "choices": [], "usage": _total(usages, options.per_prompt)})
    yield sse.DONE


class TextLogprobs:
    """Builds the `logprobs` object, whose text offsets run through all of a choice's chunks."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._offset = 0

    def add(self, entries: Sequence[TokenEntry]) -> dict[str, Any]:
        """The object for the next tokens."""
        offsets, tokens = [], []
        for entry in entries:
            text = token_text(self._vocabulary, entry.token)
            tokens.append(text)
            offsets.append(self._offset)
            self._offset += len(text)
        return {
            "tokens": tokens,
            "token_logprobs": [entry.logprob for entry in entries],
            "top_logprobs": [
                {token_text(self._vocabulary, token): value for token, value in entry.top}
                for entry in entries
            ],
            "text_offset": offsets,
        }


def _event_choice(index: int, event: Event, logprobs: TextLogprobs | None) -> dict[str, Any] | None:
    if isinstance(event, TextDelta):
        return _choice(index, event.text, logprobs.add(event.entries) if logprobs else None, None)
    if isinstance(event, Finished):
        return _choice(index, "", None, event.reason)
    return None


def _choice(
    index: int, text: str, logprobs: dict[str, Any] | None, finish_reason: str | None
) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}


def _total(usages: dict[int, TokenUsage], per_prompt: int) -> dict[str, Any]:
    """Usage over all prompts: each prompt counts once, however many answers it got."""
    groups: dict[int, list[TokenUsage]] = {}
    for index, usage in usages.items():
        groups.setdefault(index // per_prompt, []).append(usage)
    sums = [total_usage(group) for group in groups.values()]
    return usage_body(
        TokenUsage(
            prompt_tokens=sum(item.prompt_tokens for item in sums),
            completion_tokens=sum(item.completion_tokens for item in sums),
            cached_tokens=sum(item.cached_tokens for item in sums),
            reasoning_tokens=sum(item.reasoning_tokens for item in sums),
        )
    )
