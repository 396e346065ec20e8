"""From a chat request to prompt ids, and to the grammar of the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trimaran.errors import RequestError

from trimaran_gateway.chat.grammar import CallForm, Constraint, JsonForm, ReasoningState, chat_constraint
from trimaran_gateway.chat.template import ChatTemplate, Message
from trimaran_gateway.chat.tools import tool_prompt
from trimaran_gateway.text.tokenizer import QUOTE, Tokenizer

_END_OF_THOUGHT = "\n\n</think>\n\n"


@dataclass(frozen=True)
class ChatPromptRequest:
    """What a dialect asks for.

    Attributes:
        messages: normalised messages, oldest first.
        tools: OpenAI's tool objects ({"type": "function", "function": {…}}) on offer.
        force_call: None lets the model choose; "" forces some call; a name forces that function.
        strict_tools: names of the functions whose schema calls must keep to, forced or not.
        answer: the form of an answer that is no call; None is text.
        thinking: None is the template's own way; False suppresses reasoning; True asks for it.
        thought_tokens: the most tokens that the reasoning may have; None leaves it to the model.
        continue_final: continue the last message (the assistant's) instead of starting a new one.
        variables: further variables for the template.
    """

    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] = ()
    force_call: str | None = None
    strict_tools: frozenset[str] = frozenset()
    answer: JsonForm | None = None
    thinking: bool | None = None
    thought_tokens: int | None = None
    continue_final: bool = False
    add_generation_prompt: bool = True
    variables: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Prompt:
    """Token ids to continue.

    Attributes:
        ids: the prompt.
        text: the same as text.
        reasoning: the continuation starts inside the reasoning.
        constraint: what the continuation must look like.
    """

    ids: list[int]
    text: str
    reasoning: bool = False
    constraint: Constraint | None = None


class PromptBuilder:
    """Renders and encodes chat prompts for one model.

    Args:
        tokenizer: the model's.
        template: the model's.
        tool_rules: whether tool definitions come with rules on how to call (see `chat.tools`).
    """

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate, *, tool_rules: bool = True) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._tool_rules = tool_rules

    def build(self, request: ChatPromptRequest, most: int | None = None) -> Prompt:
        """The prompt of a chat request.

        Args:
            request: what is asked for.
            most: as for `Tokenizer.encode`.

        Raises:
            RequestError: the template refuses, or the model lacks what the request needs.
            TooManyTokensError: likewise.
        """
        self._check(request)
        text = self._render(request)
        ids = self._encode(text, most)
        if request.thinking is False and self._is_open(ids):
            text = text.rstrip() + _END_OF_THOUGHT
            ids = self._encode(text, most)
        return Prompt(
            ids,
            text.replace(QUOTE, ""),
            reasoning=self._is_open(ids),
            constraint=self._constraint(request, ids),
        )

    def _check(self, request: ChatPromptRequest) -> None:
        markers = self._tokenizer.vocabulary.markers
        if request.tools and not markers.can_call_tools:
            raise RequestError(
                "this model has no tokens for tool calls", code="unsupported_parameter", param="tools"
            )
        if request.thinking and not markers.can_reason:
            raise RequestError(
                "this model does not reason", code="unsupported_parameter", param="reasoning_effort"
            )
        if request.continue_final and (not request.messages or request.messages[-1]["role"] != "assistant"):
            raise RequestError(
                "continue_final_message needs a last message by the assistant",
                code="invalid_value",
                param="continue_final_message",
            )
        if request.continue_final and request.answer is not None:
            raise RequestError(
                f"{request.answer.param} describes a whole answer, not the rest of one that was begun",
                code="invalid_value",
                param=request.answer.param,
            )

    def _render(self, request: ChatPromptRequest) -> str:
        quote = self._tokenizer.quote_markers
        messages: list[Message] = [self._quoted(message) for message in request.messages]
        tools = _quote_all(list(request.tools), quote)
        if tools and not self._template.takes_tools:
            offer = tool_prompt(
                [tool["function"] for tool in request.tools],
                self._template.tool_format,
                quote,
                rules=self._tool_rules,
            )
            messages, tools = _with_system_text(messages, offer), []
        variables = dict(_quote_all(dict(request.variables), quote))
        if request.thinking is not None:
            variables |= {"thinking": request.thinking, "enable_thinking": request.thinking}
        text = self._template.render(
            messages,
            tools=tools,
            add_generation_prompt=request.add_generation_prompt and not request.continue_final,
            variables=variables,
        )
        return _cut_after_final(text, messages[-1]) if request.continue_final else text

    def _quoted(self, message: Message) -> Message:
        """Only the assistant's own words may hold the reasoning markers, which templates look for."""
        keep = ("<think>", "</think>") if message["role"] == "assistant" else ()
        return dict(_quote_all(message, lambda text: self._tokenizer.quote_markers(text, keep=keep)))

    def _constraint(self, request: ChatPromptRequest, ids: Sequence[int]) -> Constraint | None:
        calls = CallForm(
            functions=[tool["function"] for tool in request.tools],
            strict=request.strict_tools,
            forced=request.force_call,
            style=self._template.tool_format,
        )
        markers = self._tokenizer.vocabulary.markers
        reasoning = self._reasoning(request, ids)
        return chat_constraint(request.answer, calls, markers, reasoning, request.thought_tokens)

    def _reasoning(self, request: ChatPromptRequest, ids: Sequence[int]) -> ReasoningState:
        markers = self._tokenizer.vocabulary.markers
        if self._is_open(ids):
            return "open"
        is_over = request.thinking is False or self._last_marker(ids) == markers.end_think
        return "over" if is_over else "possible"

    def _encode(self, text: str, most: int | None) -> list[int]:
        return self._tokenizer.encode(text, add_bos=self._tokenizer.add_bos, quoted=True, most=most)

    def _is_open(self, ids: Sequence[int]) -> bool:
        """Whether the last reasoning marker of the last turn is an opening one."""
        markers = self._tokenizer.vocabulary.markers
        return markers.can_reason and self._last_marker(ids) == markers.think

    def _last_marker(self, ids: Sequence[int]) -> int | None:
        """The last marker of a turn's or the reasoning's begin or end."""
        markers = self._tokenizer.vocabulary.markers
        wanted = (markers.think, markers.end_think, markers.assistant, markers.user)
        return next((token for token in reversed(ids) if token in wanted), None)


def _with_system_text(messages: list[Message], text: str) -> list[Message]:
    """`text` at the end of the first system message, which is made if there is none."""
    for index, message in enumerate(messages):
        if message["role"] == "system":
            own = message["content"]
            joined = {**message, "content": f"{own}\n\n{text}" if own else text}
            return [*messages[:index], joined, *messages[index + 1 :]]
    return [{"role": "system", "content": text}, *messages]


def _cut_after_final(text: str, final: Message) -> str:
    content = (final["content"] or "").rsplit("</think>", 1)[-1].strip()
    start = text.rfind(content) if content else -1
    if start < 0:
        raise RequestError(
            "the chat template leaves nothing of the final message to continue",
            code="invalid_value",
            param="continue_final_message",
        )
    return text[: start + len(content)]


def _quote_all(value: Any, quote: Any) -> Any:
    if isinstance(value, str):
        return quote(value)
    if isinstance(value, Mapping):
        return {key: _quote_all(item, quote) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_quote_all(item, quote) for item in value]
    return value
