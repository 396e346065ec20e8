"""A whole answer from its events."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

from trimaran_gateway.output.events import (
    Event,
    Finished,
    FinishReason,
    Progress,
    TextDelta,
    TokenEntry,
    TokenUsage,
    ToolCallDelta,
    ToolCallStart,
)


@dataclass
class CollectedCall:
    """One tool call; `arguments` is JSON text."""

    call_id: str
    name: str
    arguments: str = ""


@dataclass
class Answer:
    """Everything that one generation yielded."""

    content: str = ""
    reasoning: str = ""
    calls: list[CollectedCall] = field(default_factory=list)
    entries: list[TokenEntry] = field(default_factory=list)
    prompt_entries: list[TokenEntry] = field(default_factory=list)
    reason: FinishReason = "stop"
    stop_sequence: str | None = None
    usage: TokenUsage = field(default_factory=lambda: TokenUsage(0, 0))

    def add(self, event: Event) -> None:
        """Take in one event."""
        match event:
            case TextDelta("content", text, entries):
                self.content += text
                self.entries += entries
            case TextDelta(_, text, _):
                self.reasoning += text
            case ToolCallStart(_, call_id, name):
                self.calls.append(CollectedCall(call_id, name))
            case ToolCallDelta(index, text):
                self.calls[index].arguments += text
            case Finished(reason, usage, stop_sequence):
                self.reason, self.usage, self.stop_sequence = reason, usage, stop_sequence
            case Progress(_, _, prompt_entries):
                self.prompt_entries += prompt_entries


async def collect(events: AsyncGenerator[tuple[int, Event]], n: int) -> list[Answer]:
    """The `n` whole answers of `Generator.run_all`."""
    answers = [Answer() for _ in range(n)]
    async with aclosing(events):
        async for index, event in events:
            answers[index].add(event)
    return answers


def total_usage(usages: list[TokenUsage]) -> TokenUsage:
    """Sum over several answers to one prompt."""
    total = usages[0]
    for usage in usages[1:]:
        total += usage
    return total
