"""OpenAI's chat messages and tools, and what chat templates want to see of them."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from trimaran_gateway.chat.template import Message
from trimaran_gateway.errors import bad_request, unsupported
from trimaran_gateway.schemas.base import Body

Role = Literal["system", "developer", "user", "assistant", "tool"]
FunctionName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]


class ContentPart(Body):
    """A piece of a message; only text can be read here."""

    type: str
    text: str | None = None


class CalledFunction(Body):
    """The function of an earlier call. `arguments` is JSON text (an object is accepted too)."""

    name: FunctionName
    arguments: str | dict[str, Any] = "{}"


class ToolCall(Body):
    """An earlier call by the assistant."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction


class ChatMessage(Body):
    """One message of the conversation."""

    role: Role
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None


class FunctionDefinition(Body):
    """A function that the model may call; `parameters` is a JSON schema."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    """A tool on offer."""

    type: Literal["function"]
    function: FunctionDefinition


class NamedFunction(Body):
    """A function's name."""

    name: FunctionName


class NamedToolChoice(Body):
    """`tool_choice` that names a function."""

    type: Literal["function"]
    function: NamedFunction


ToolChoice = Literal["none", "auto", "required"] | NamedToolChoice
Messages = Annotated[list[ChatMessage], Field(min_length=1)]


def template_messages(messages: list[ChatMessage]) -> list[Message]:
    """The messages as chat templates read them.

    Raises:
        ApiError: 400, for content that is no text, naming the message.
    """
    return [_template_message(index, message) for index, message in enumerate(messages)]


def template_tools(tools: list[Tool] | None) -> list[dict[str, Any]]:
    """The tools as chat templates read them.

    Raises:
        ApiError: 400, for a name that occurs twice.
    """
    result: list[dict[str, Any]] = []
    for index, tool in enumerate(tools or []):
        function = tool.function
        where = f"tools[{index}].function"
        if any(other["function"]["name"] == function.name for other in result):
            raise bad_request(f"{where}.name: {function.name!r} occurs twice", param=f"{where}.name")
        definition: dict[str, Any] = {"name": function.name}
        if function.description is not None:
            definition["description"] = function.description
        definition["parameters"] = function.parameters or {"type": "object", "properties": {}}
        result.append({"type": "function", "function": definition})
    return result


def strict_tools(tools: list[Tool] | None) -> frozenset[str]:
    """Names of the functions whose calls must keep to their schema."""
    return frozenset(tool.function.name for tool in tools or [] if tool.function.strict)


def forced_call(choice: ToolChoice | None, tools: list[dict[str, Any]]) -> str | None:
    """What `PromptBuilder` shall force: None nothing, "" some call, else the function's name.

    Raises:
        ApiError: 400, for a choice that the tools do not allow.
    """
    if choice is None or isinstance(choice, str):
        if choice != "required":
            return None
        if not tools:
            raise bad_request("tool_choice 'required' needs tools", param="tool_choice")
        return tools[0]["function"]["name"] if len(tools) == 1 else ""
    name = choice.function.name
    if all(tool["function"]["name"] != name for tool in tools):
        raise bad_request(f"tool_choice: no tool is named {name!r}", param="tool_choice")
    return name


def _template_message(index: int, message: ChatMessage) -> Message:
    content = _text(index, message)
    result: Message = {
        "role": "system" if message.role == "developer" else message.role,
        "content": content,
    }
    if message.role != "assistant" and content is None:
        raise bad_request(
            f"messages[{index}].content: a {message.role} message needs content",
            param=f"messages[{index}].content",
        )
    for name in ("name", "tool_call_id", "reasoning_content"):
        value = getattr(message, name)
        if value is not None:
            result[name] = value
    if message.tool_calls:
        result["tool_calls"] = [_template_call(call) for call in message.tool_calls]
        result["content"] = content or None  # templates ask `is none` to tell a bare call
    elif content is None:
        result["content"] = ""
    return result


def _text(index: int, message: ChatMessage) -> str | None:
    if message.content is None or isinstance(message.content, str):
        return message.content
    texts = []
    for number, part in enumerate(message.content):
        where = f"messages[{index}].content[{number}]"
        if part.type not in ("text", "input_text", "output_text"):
            raise unsupported(
                f"{where}.type", f"{part.type!r} parts cannot be read, this model takes text only"
            )
        if part.text is None:
            raise bad_request(f"{where}.text: a text part needs text", param=f"{where}.text")
        texts.append(part.text)
    return "".join(texts)


def _template_call(call: ToolCall) -> dict[str, Any]:
    arguments = call.function.arguments
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {
        "id": call.id or "",
        "type": "function",
        "function": {"name": call.function.name, "arguments": text},
    }
