"""The whole way from generated ids to events: reasoning, answer, tool calls, stop strings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trimaran_gateway.output.events import Parsed, TokenEntry
from trimaran_gateway.output.section import TextSection
from trimaran_gateway.output.tool_calls import ToolCallParser
from trimaran_gateway.text.vocabulary import Vocabulary


@dataclass(frozen=True)
class OutputFormat:
    """How to read a model's output.

    Attributes:
        chat: split reasoning and tool calls; False gives plain text with all of it.
        reasoning: the prompt ends inside the reasoning.
        tools: tool calls are expected.
        one_call: stop after the first call.
        stops: strings that end the answer (they are not looked for in the reasoning or in calls).
        stop_ids: tokens that end a generation; they have no text. Their log probabilities are told in plain
            text only, as OpenAI does.
    """

    chat: bool = True
    reasoning: bool = False
    tools: bool = False
    one_call: bool = False
    stops: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()


class OutputParser:
    """Feeds on ids, one request's, in order.

    Attributes:
        reasoning_tokens: how many ids belonged to the reasoning, its markers included.
        stop_sequence: the stop string that ended the answer.
        calls: tool calls that were completed.
        done: nothing more is wanted, whatever the engine would still generate.
    """

    def __init__(self, vocabulary: Vocabulary, output: OutputFormat) -> None:
        self._vocabulary = vocabulary
        self._markers = vocabulary.markers
        self._output = output
        self._reasoning = output.chat and output.reasoning
        self._section = self._new_section(after_reasoning=False)
        self._calls: ToolCallParser | None = None
        self.reasoning_tokens = 0

    @property
    def stop_sequence(self) -> str | None:
        """The stop string that ended the answer."""
        return self._section.matched

    @property
    def calls(self) -> int:
        """Tool calls that were completed."""
        return self._calls.completed if self._calls else 0

    @property
    def done(self) -> bool:
        """Whether the generation may be stopped."""
        return self.stop_sequence is not None or (self._output.one_call and self.calls > 0)

    def feed(self, ids: Sequence[int], entries: Sequence[TokenEntry] | None = None) -> list[Parsed]:
        """What new ids add; `entries`, if given, has one entry per id."""
        events: list[Parsed] = []
        for index, token in enumerate(ids):
            if self.done:
                break
            self.reasoning_tokens += self._reasoning
            entry = entries[index] if entries else None
            if token not in self._output.stop_ids:
                events += self._feed_one(token, entry)
            elif entry is not None and not self._output.chat:
                self._section.note(entry)
        return events

    def finish(self) -> list[Parsed]:
        """What was held back; the generation has ended."""
        calls = self._calls.close() if self._calls else []
        return [*self._section.close(drop_space=self._reasoning), *calls]

    def _feed_one(self, token: int, entry: TokenEntry | None) -> list[Parsed]:
        if self._output.chat:
            if token in (self._markers.think, self._markers.end_think):
                return self._switch(opening=token == self._markers.think)
            if self._output.tools and token in (self._markers.calls_begin, self._markers.call_begin):
                return self._enter_calls(token)
        if self._calls is not None:
            return self._calls.feed(token)
        return list(self._section.feed(token, entry))

    def _switch(self, *, opening: bool) -> list[Parsed]:
        """A reasoning marker; one that changes nothing has no meaning and no text."""
        if opening == self._reasoning or self._calls is not None:
            return []
        self.reasoning_tokens += opening
        events = self._section.close(drop_space=self._reasoning)
        self._reasoning = opening
        self._section = self._new_section(after_reasoning=not opening)
        return list(events)

    def _enter_calls(self, token: int) -> list[Parsed]:
        events: list[Parsed] = []
        if self._calls is None:
            events += self._section.close(drop_space=True)
            self._reasoning = False
            self._section = self._new_section(after_reasoning=False)
            self._calls = ToolCallParser(self._vocabulary)
        return [*events, *self._calls.feed(token)]

    def _new_section(self, *, after_reasoning: bool) -> TextSection:
        if self._reasoning:
            return TextSection("reasoning", self._vocabulary, trim_start=True, trim_end=True)
        return TextSection(
            "content",
            self._vocabulary,
            self._output.stops,
            trim_start=after_reasoning,
            trim_end=self._output.chat and self._output.tools,
        )
