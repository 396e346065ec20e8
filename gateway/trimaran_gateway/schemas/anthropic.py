"""Bodies of Anthropic's Messages API, and what chat templates want to see of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from trimaran.wire import SamplingParams

from trimaran_gateway.chat.grammar import JsonForm
from trimaran_gateway.chat.prompt import ChatPromptRequest
from trimaran_gateway.chat.template import Message
from trimaran_gateway.errors import bad_request, unsupported
from trimaran_gateway.schemas.base import Body, Probability, StopStrings
from trimaran_gateway.schemas.messages import FunctionName


class Block(Body):
    """A content block; which of the fields belong to it depends on `type`."""

    type: str
    text: str | None = None
    thinking: str | None = None
    id: str | None = None
    name: FunctionName | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: str | list[Block] | None = None
    is_error: bool = False


class AnthropicMessage(Body):
    """One turn of the conversation."""

    role: Literal["user", "assistant"]
    content: str | list[Block]


class AnthropicTool(Body):
    """A function that the model may call."""

    name: FunctionName
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] = Field(default_factory=lambda: {"type": "object", "properties": {}})
    strict: bool = False


class AnthropicToolChoice(Body):
    """Whether, and what, to call."""

    type: Literal["auto", "any", "tool", "none"]
    name: FunctionName | None = None
    disable_parallel_tool_use: bool = False


class OutputFormat(Body):
    """The form of the answer."""

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Body):
    """Where newer clients put the form of the answer, and how hard to think."""

    format: OutputFormat | None = None
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None


class Thinking(Body):
    """Whether to reason, and for how many tokens at most."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Annotated[int, Field(ge=1)] | None = None


class Metadata(Body):
    """Whose request it is, for the books."""

    user_id: str | None = None


class CountTokensRequest(Body):
    """`POST /v1/messages/count_tokens`, and the part of a message request that makes the prompt."""

    model: str
    messages: Annotated[list[AnthropicMessage], Field(min_length=1)]
    system: str | list[Block] | None = None
    tools: Annotated[list[AnthropicTool], Field(max_length=128)] | None = None
    tool_choice: AnthropicToolChoice | None = None
    thinking: Thinking | None = None
    output_format: OutputFormat | None = None
    output_config: OutputConfig | None = None

    refused: ClassVar[Mapping[str, str]] = {
        "mcp_servers": "this server connects to no other",
        "container": "there is no code execution",
        "context_management": "a conversation is taken as it is",
    }
    harmless: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "mcp_servers": ([],),
        "context_management": ({},),
    }

    def prompt(self) -> ChatPromptRequest:
        """The prompt that this body asks for.

        Raises:
            ApiError: 400, for what cannot be honoured, naming the field.
        """
        self.refuse_unsupported()
        choice = self.tool_choice
        offered = self.tools if self.tools and not (choice and choice.type == "none") else []
        tools = [_tool(index, tool) for index, tool in enumerate(offered)]
        messages: list[Message] = []
        if self.system:
            messages.append({"role": "system", "content": _text(self.system, "system")})
        for index, message in enumerate(self.messages):
            messages += _turn(message, f"messages[{index}].content")
        return ChatPromptRequest(
            messages=messages,
            tools=tools,
            force_call=self._forced(tools),
            strict_tools=frozenset(tool.name for tool in offered if tool.strict),
            answer=self._answer_form(),
            thinking=None if self.thinking is None else self.thinking.type != "disabled",
            thought_tokens=self._thought_tokens(),
            variables=self._variables(),
            continue_final=messages[-1]["role"] == "assistant" and bool(messages[-1]["content"]),
        )

    def _thought_tokens(self) -> int | None:
        if self.thinking is None or self.thinking.budget_tokens is None:
            return None
        if self.thinking.type != "enabled":
            where = "thinking.budget_tokens"
            raise bad_request(f"{where} goes with type 'enabled', not {self.thinking.type!r}", param=where)
        return self.thinking.budget_tokens

    def _variables(self) -> dict[str, Any]:
        effort = self.output_config.effort if self.output_config is not None else None
        return {} if effort is None else {"reasoning_effort": effort}

    def _answer_form(self) -> JsonForm | None:
        if self.output_config is not None and self.output_config.format is not None:
            return JsonForm(self.output_config.format.schema_, "output_config.format.schema")
        if self.output_format is not None:
            return JsonForm(self.output_format.schema_, "output_format.schema")
        return None

    def _forced(self, tools: list[dict[str, Any]]) -> str | None:
        choice = self.tool_choice
        if choice is None or choice.type in ("auto", "none"):
            return None
        names = [tool["function"]["name"] for tool in tools]
        if choice.type == "tool":
            if choice.name not in names:
                raise bad_request(f"tool_choice: no tool is named {choice.name!r}", param="tool_choice")
            return choice.name
        if not names:
            raise bad_request("tool_choice 'any' needs tools", param="tool_choice")
        return names[0] if len(names) == 1 else ""


class MessagesRequest(CountTokensRequest):
    """`POST /v1/messages`."""

    max_tokens: Annotated[int, Field(ge=1)]
    stop_sequences: StopStrings | None = None
    temperature: Annotated[float, Field(ge=0, le=1)] = 1.0
    top_p: Probability | None = None
    top_k: Annotated[int, Field(ge=0, lt=1 << 31)] | None = None
    stream: bool = False
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None

    def prompt(self) -> ChatPromptRequest:
        """The prompt that this body asks for.

        Raises:
            ApiError: 400, for what cannot be honoured, naming the field.
        """
        budget = self.thinking.budget_tokens if self.thinking is not None else None
        if budget is not None and budget >= self.max_tokens:
            where = "thinking.budget_tokens"
            raise bad_request(f"{where} {budget} must be less than max_tokens {self.max_tokens}", param=where)
        return super().prompt()

    def sampling(self) -> SamplingParams:
        """The engine's parameters."""
        return SamplingParams(
            temperature=self.temperature,
            top_p=self.top_p or 1.0,
            top_k=self.top_k or 0,
            max_tokens=self.max_tokens,
        )

    @property
    def one_call(self) -> bool:
        """Whether to stop after the first call."""
        return self.tool_choice is not None and self.tool_choice.disable_parallel_tool_use


def _tool(index: int, tool: AnthropicTool) -> dict[str, Any]:
    if tool.type not in (None, "custom"):
        raise unsupported(f"tools[{index}].type", f"there is no built-in tool {tool.type!r}")
    function: dict[str, Any] = {"name": tool.name}
    if tool.description is not None:
        function["description"] = tool.description
    return {"type": "function", "function": {**function, "parameters": tool.input_schema}}


def _turn(message: AnthropicMessage, where: str) -> list[Message]:
    """The template's messages for one turn: tool results become messages of their own, before the text."""
    if isinstance(message.content, str):
        return [{"role": message.role, "content": message.content}]
    results = [block for block in message.content if block.type == "tool_result"]
    rest = [block for block in message.content if block.type != "tool_result"]
    turn: list[Message] = [
        {
            "role": "tool",
            "tool_call_id": block.tool_use_id or "",
            "content": f"{'Error: ' if block.is_error else ''}{_text(block.content or '', where)}",
        }
        for block in results
    ]
    if rest or not results:
        turn.append(_spoken(message.role, rest, where))
    return turn


def _spoken(role: str, blocks: list[Block], where: str) -> Message:
    calls = [_call(block, where) for block in blocks if block.type == "tool_use"]
    thoughts = [block.thinking or "" for block in blocks if block.type == "thinking"]
    hidden = ("tool_use", "thinking", "redacted_thinking")
    text = _text([block for block in blocks if block.type not in hidden], where)
    message: Message = {"role": role, "content": text}
    if thoughts:
        message["reasoning_content"] = "".join(thoughts)
    if calls:
        message |= {"content": text or None, "tool_calls": calls}
    return message


def _call(block: Block, where: str) -> dict[str, Any]:
    if block.name is None:
        raise bad_request(f"{where}: a tool_use block needs a name", param=where)
    arguments = json.dumps(block.input or {}, ensure_ascii=False)
    return {
        "id": block.id or "",
        "type": "function",
        "function": {"name": block.name, "arguments": arguments},
    }


def _text(content: str | list[Block], where: str) -> str:
    if isinstance(content, str):
        return content
    for index, block in enumerate(content):
        if block.type != "text" or block.text is None:
            raise unsupported(f"{where}[{index}]", f"{block.type!r} blocks cannot be read, only text")
    return "".join(block.text or "" for block in content)
