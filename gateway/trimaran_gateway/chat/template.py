"""A model's chat template: messages to the text that the model was trained to continue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2.exceptions import TemplateError, TemplateSyntaxError
from trimaran.errors import ModelFileError, RequestError

from trimaran_gateway.chat.sandbox import Renderer, TemplateRefusalError, compile_template
from trimaran_gateway.chat.tools import ToolFormat, tool_format

Message = dict[str, Any]
"""A message as templates read it: role, content (text or None), maybe tool_calls, tool_call_id, name."""

_PROBE_TOOL = {
    "type": "function",
    "function": {"name": "probe", "description": "probe", "parameters": {"type": "object", "properties": {}}},
}


class ChatTemplate:
    """A compiled template with what the prompt builder must know about it.

    Args:
        source: Jinja text, `tokenizer.chat_template`.
        tool_use: another template for requests with tools, `tokenizer.chat_template.tool_use`.
        bos, eos: texts of the begin and end tokens.

    Attributes:
        takes_tools: whether `tools` change what it renders; if not, the caller must write them into the
            system text.
        tool_format: how it writes calls.

    Raises:
        ModelFileError: the template does not compile.
    """

    def __init__(self, source: str, *, bos: str, eos: str, tool_use: str | None = None) -> None:
        self.source = source
        self._tokens = {"bos_token": bos, "eos_token": eos}
        self._plain = _compile(source)
        self._with_tools = _compile(tool_use) if tool_use else self._plain
        self.tool_format: ToolFormat = tool_format(tool_use or source)
        self.takes_tools = self._notices_tools()

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt's text.

        Raises:
            RequestError: the template refuses these messages, or cannot render them.
        """
        renderer = self._with_tools if tools else self._plain
        arguments = {
            **(variables or {}),
            **self._tokens,
            "messages": list(messages),
            "tools": list(tools) if tools else None,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return renderer(**arguments)
        except TemplateRefusalError as error:
            raise RequestError(
                f"the model's chat template refuses these messages: {error}",
                code="template_refused",
                param="messages",
            ) from error
        except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError, RecursionError) as error:
            raise RequestError(
                f"the model's chat template cannot render these messages: {error}",
                code="template_failed",
                param="messages",
            ) from error

    def _notices_tools(self) -> bool:
        if self._with_tools is not self._plain:
            return True
        messages: list[Message] = [{"role": "user", "content": "probe"}]
        try:
            return self.render(messages) != self.render(messages, tools=[_PROBE_TOOL])
        except RequestError:
            return False


def _compile(source: str) -> Renderer:
    try:
        return compile_template(source)
    except TemplateSyntaxError as error:
        raise ModelFileError(f"tokenizer.chat_template, line {error.lineno}: {error.message}") from error
