"""The body of OpenAI's Responses API, and what chat templates want to see of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from trimaran.wire import SamplingParams

from trimaran_gateway.chat.grammar import JsonForm
from trimaran_gateway.chat.prompt import ChatPromptRequest
from trimaran_gateway.chat.template import Message
from trimaran_gateway.errors import bad_request, unsupported
from trimaran_gateway.schemas.base import Body, Labels
from trimaran_gateway.schemas.messages import (
    ContentPart,
    FunctionDefinition,
    FunctionName,
    NamedFunction,
    NamedToolChoice,
    Role,
    Tool,
    forced_call,
    strict_tools,
    template_tools,
)
from trimaran_gateway.schemas.openai import ReasoningEffort
from trimaran_gateway.schemas.sampling import StreamOptions, check_stream_options

NOT_STORED = "answers are not stored: send the whole conversation as input"


class InputItem(Body):
    """A message, an earlier call, its output, or earlier reasoning; which fields count depends on `type`."""

    type: str = "message"
    role: Role | None = None
    content: str | list[ContentPart] | None = None
    call_id: str | None = None
    name: FunctionName | None = None
    arguments: str | None = None
    output: str | list[ContentPart] | None = None


class ResponsesTool(Body):
    """A function on offer."""

    type: str
    name: FunctionName | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ResponsesToolChoice(Body):
    """`tool_choice` that names a function."""

    type: Literal["function"]
    name: FunctionName


class ReasoningOptions(Body):
    """How to reason."""

    effort: ReasoningEffort | None = None


class TextFormat(Body):
    """The form of the answer; a schema comes with its type json_schema."""

    type: Literal["text", "json_object", "json_schema"]
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None

    def form(self) -> JsonForm | None:
        """What the engine shall keep to; None is text.

        Raises:
            ApiError: 400, if the schema is missing.
        """
        if self.type == "text":
            return None
        if self.type == "json_object":
            return JsonForm({"type": "object"}, "text.format")
        where = "text.format.schema"
        if self.schema_ is None:
            raise bad_request(f"{where}: field required with type json_schema", param=where)
        return JsonForm(self.schema_, where, self.strict is not False)


class TextOptions(Body):
    """The form of the answer."""

    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ResponsesRequest(Labels, Body):
    """`POST /v1/responses`."""

    model: str | None = None
    input: str | Annotated[list[InputItem], Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    tools: Annotated[list[ResponsesTool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ResponsesToolChoice = "auto"
    parallel_tool_calls: bool = True
    reasoning: ReasoningOptions | None = None
    text: TextOptions | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    include: list[str] | None = None
    metadata: dict[str, str] | None = None

    refused: ClassVar[Mapping[str, str]] = {
        "previous_response_id": NOT_STORED,
        "conversation": NOT_STORED,
        "store": NOT_STORED,
        "background": NOT_STORED,
        "prompt": "there are no stored prompts",
        "truncation": "a conversation that is too long is refused, not cut",
        "max_tool_calls": "there are no built-in tools",
        "top_logprobs": "use /v1/chat/completions",
    }
    harmless: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "store": (False,),
        "background": (False,),
        "truncation": ("disabled",),
        "top_logprobs": (0,),
    }

    def check(self) -> None:
        """Fail for what cannot be honoured.

        Raises:
            ApiError: 400, naming the field.
        """
        self.refuse_unsupported()
        check_stream_options(self.stream_options, stream=self.stream)
        if "message.output_text.logprobs" in (self.include or ()):
            raise unsupported("include", "for log probabilities use /v1/chat/completions")
        if self.text is not None and self.text.verbosity not in (None, "medium"):
            raise unsupported("text.verbosity", "this model has no such switch")

    def sampling(self) -> SamplingParams:
        """The engine's parameters."""
        return SamplingParams(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            max_tokens=self.max_output_tokens,
        )

    def prompt(self) -> ChatPromptRequest:
        """The prompt that this body asks for.

        Raises:
            ApiError: 400, for what cannot be read, naming the field.
        """
        offered = [_tool(index, tool) for index, tool in enumerate(self.tools or [])]
        tools = template_tools(offered) if self.tool_choice != "none" else []
        choice = self.tool_choice
        named = (
            NamedToolChoice(type="function", function=NamedFunction(name=choice.name))
            if isinstance(choice, ResponsesToolChoice)
            else choice
        )
        effort = self.reasoning.effort if self.reasoning else None
        return ChatPromptRequest(
            messages=self._messages(),
            tools=tools,
            force_call=forced_call(named, tools),
            strict_tools=strict_tools(offered),
            answer=self.text.format.form() if self.text and self.text.format else None,
            thinking=None if effort is None else effort != "none",
            variables={} if effort is None else {"reasoning_effort": effort},
        )

    def _messages(self) -> list[Message]:
        messages: list[Message] = []
        if self.instructions:
            messages.append({"role": "system", "content": self.instructions})
        if isinstance(self.input, str):
            return [*messages, {"role": "user", "content": self.input}]
        for index, item in enumerate(self.input):
            _add_item(messages, item, f"input[{index}]")
        if not messages:
            raise bad_request("input: there is no message in it", param="input")
        return messages


def _add_item(messages: list[Message], item: InputItem, where: str) -> None:
    match item.type:
        case "message":
            if item.role is None:
                raise bad_request(f"{where}.role: field required", param=f"{where}.role")
            role = "system" if item.role == "developer" else item.role
            messages.append({"role": role, "content": _text(item.content or "", f"{where}.content")})
        case "function_call":
            _add_call(messages, item, where)
        case "function_call_output":
            text = _text(item.output or "", f"{where}.output")
            messages.append({"role": "tool", "tool_call_id": item.call_id or "", "content": text})
        case "reasoning":
            pass  # DeepSeek's models do not see the reasoning of earlier turns
        case _:
            raise unsupported(f"{where}.type", f"{item.type!r} items cannot be read")


def _add_call(messages: list[Message], item: InputItem, where: str) -> None:
    """A call joins the assistant's message before it, as the model wrote both in one turn."""
    if item.name is None:
        raise bad_request(f"{where}.name: field required", param=f"{where}.name")
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": None})
    function = {"name": item.name, "arguments": item.arguments or "{}"}
    call = {"id": item.call_id or "", "type": "function", "function": function}
    messages[-1].setdefault("tool_calls", []).append(call)


def _tool(index: int, tool: ResponsesTool) -> Tool:
    where = f"tools[{index}]"
    if tool.type != "function":
        raise unsupported(f"{where}.type", f"there is no built-in tool {tool.type!r}")
    if tool.name is None:
        raise bad_request(f"{where}.name: field required", param=f"{where}.name")
    definition = FunctionDefinition(
        name=tool.name, description=tool.description, parameters=tool.parameters, strict=tool.strict
    )
    return Tool(type="function", function=definition)


def _text(content: str | list[ContentPart], where: str) -> str:
    if isinstance(content, str):
        return content
    for index, part in enumerate(content):
        if part.type not in ("input_text", "output_text", "text") or part.text is None:
            raise unsupported(f"{where}[{index}].type", f"{part.type!r} parts cannot be read, only text")
    return "".join(part.text or "" for part in content)
