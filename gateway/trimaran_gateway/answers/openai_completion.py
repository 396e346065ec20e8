"""`/v1/completions`: the whole answer and the stream of chunks."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from trimaran_gateway import sse
from trimaran_gateway.answers.openai import AnswerHead, usage_body
from trimaran_gateway.answers.token_logprobs import TextLogprobs, prompt_logprobs
from trimaran_gateway.chat.prompt import Prompt
from trimaran_gateway.output.collect import Answer, total_usage
from trimaran_gateway.output.events import Event, Finished, Progress, TextDelta, TokenEntry, TokenUsage
from trimaran_gateway.text.vocabulary import Vocabulary


@dataclass(frozen=True)
class CompletionAnswerOptions:
    """How the client wants its answer.

    Attributes:
        prompts: one per choice.
        per_prompt: how many consecutive choices belong to one prompt.
        echo: put the prompt in front of each choice.
        logprobs, prompt_logprobs: alternatives per token; None without.
    """

    prompts: tuple[Prompt, ...]
    per_prompt: int = 1
    echo: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    include_usage: bool = False
    continuous_usage: bool = False


def completion_answer(
    head: AnswerHead, answers: list[Answer], vocabulary: Vocabulary, options: CompletionAnswerOptions
) -> dict[str, Any]:
    """A `text_completion` object."""
    choices = []
    for index, answer in enumerate(answers):
        parts = _ChoiceParts(index, vocabulary, options)
        prompt = parts.prompt(answer.prompt_entries) if options.echo else None
        choice = parts.text(answer.content, answer.entries, answer.reason)
        if prompt is not None:
            choice = {**choice, "text": prompt["text"] + choice["text"], "logprobs": _joined(prompt, choice)}
        if options.prompt_logprobs is not None:
            entries = answer.prompt_entries
            choice["prompt_logprobs"] = prompt_logprobs(vocabulary, entries, options.prompt_logprobs)
        choices.append(choice)
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
    makers = [_ChunkMaker(index, vocabulary, options) for index in range(len(options.prompts))]
    async with aclosing(events):
        async for index, event in events:
            if isinstance(event, (Progress, Finished)):
                usages[index] = event.usage
            for choice in makers[index].of(event):
                chunk = {**fields, "choices": [choice]}
                if options.continuous_usage:
                    chunk["usage"] = _total(usages, options.per_prompt)
                elif options.include_usage:
                    chunk["usage"] = None
                yield sse.data(chunk)
    if options.include_usage:
        yield sse.data({**fields, "choices": [], "usage": _total(usages, options.per_prompt)})
    yield sse.DONE


class _ChoiceParts:
    """Makes the objects of one choice: its prompt, then its texts."""

    def __init__(self, index: int, vocabulary: Vocabulary, options: CompletionAnswerOptions) -> None:
        self._index = index
        self._prompt = options.prompts[index]
        self._logprobs = None if options.logprobs is None else TextLogprobs(vocabulary, options.logprobs)

    def prompt(self, entries: Sequence[TokenEntry]) -> dict[str, Any]:
        """The prompt as the choice's first text."""
        logprobs = self._logprobs.of_prompt(self._prompt.ids[0], entries) if self._logprobs else None
        return self._choice(self._prompt.text, logprobs, None)

    def text(
        self, text: str, entries: Sequence[TokenEntry], finish_reason: str | None = None
    ) -> dict[str, Any]:
        """More text."""
        return self._choice(text, self._logprobs.add(entries) if self._logprobs else None, finish_reason)

    def end(self, finish_reason: str) -> dict[str, Any]:
        """The last object."""
        return self._choice("", None, finish_reason)

    def _choice(
        self, text: str, logprobs: dict[str, Any] | None, finish_reason: str | None
    ) -> dict[str, Any]:
        return {"index": self._index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}


class _ChunkMaker:
    """The objects of one choice from its events; with `echo` its prompt comes before its first text."""

    def __init__(self, index: int, vocabulary: Vocabulary, options: CompletionAnswerOptions) -> None:
        self._parts = _ChoiceParts(index, vocabulary, options)
        self._owes_prompt = options.echo
        self._prompt_entries: list[TokenEntry] = []

    def of(self, event: Event) -> list[dict[str, Any]]:
        """What one event adds."""
        if isinstance(event, Progress):
            self._prompt_entries += event.prompt_entries
        if isinstance(event, TextDelta):
            return [*self._prompt(), self._parts.text(event.text, event.entries)]
        if isinstance(event, Finished):
            return [*self._prompt(), self._parts.end(event.reason)]
        return []

    def _prompt(self) -> list[dict[str, Any]]:
        owed, self._owes_prompt = self._owes_prompt, False
        return [self._parts.prompt(self._prompt_entries)] if owed else []


def _joined(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any] | None:
    """The log probabilities of two consecutive parts of a choice."""
    if first["logprobs"] is None:
        return None
    return {name: [*values, *second["logprobs"][name]] for name, values in first["logprobs"].items()}


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
