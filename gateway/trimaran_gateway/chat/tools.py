"""Tool definitions as text in the prompt, in the two formats that DeepSeek's models write their calls in.

The stock templates of V3, R1 and V3.1 ignore `tools`, so the definitions are put at the end of the system
text. Small models, trained on one wording, get the bare list; large ones also the rules of calling.
The GGUF key `trimaran.tool_prompt` ("list" or "rules") decides otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any

Definition = Mapping[str, Any]
"""The `function` object of OpenAI's tool: name, description, parameters."""


class ToolFormat(Enum):
    """How a model writes a call between the tool markers."""

    FENCED = "fenced"
    """V3 and R1: ``function<｜tool▁sep｜>NAME``, then the arguments in a fenced json block."""

    INLINE = "inline"
    """V3.1: ``NAME<｜tool▁sep｜>{…}``."""


_LIST = "## Tools\nYou have access to the following functions:\n"

_FENCED_RULES = """

To call a function, write exactly this, with the arguments as one JSON object:
<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>FUNCTION_NAME
```json
{"parameter": "value"}
```<｜tool▁call▁end｜><｜tool▁calls▁end｜>
Several calls go between the same <｜tool▁calls▁begin｜> and <｜tool▁calls▁end｜>, one after the other. \
Call a function only when it is needed; otherwise answer directly."""

_INLINE_HEADER = "## Tools\nYou have access to the following tools:\n"

_INLINE_RULES = """
IMPORTANT: ALWAYS adhere to this exact format for tool use:
<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>tool_call_name<｜tool▁sep｜>tool_call_arguments<｜tool▁call▁end｜>\
{{additional_tool_calls}}<｜tool▁calls▁end｜>

Where:
- `tool_call_name` must be an exact match to one of the available tools
- `tool_call_arguments` must be valid JSON that strictly follows the tool's Parameters Schema
- For multiple tool calls, chain them directly without separators or spaces"""


def tool_format(template: str) -> ToolFormat:
    """The call format that a chat template writes earlier calls in."""
    return ToolFormat.INLINE if "tool▁sep" in template and "```json" not in template else ToolFormat.FENCED


def tool_prompt(
    definitions: Sequence[Definition],
    style: ToolFormat,
    quote: Callable[[str], str],
    *,
    rules: bool = True,
) -> str:
    """The system text that offers `definitions`.

    Args:
        definitions: at least one function.
        style: the model's call format.
        quote: makes markers in the client's text plain text.
        rules: explain how to write a call; False gives the bare list.
    """
    if style is ToolFormat.INLINE:
        tools = "".join(map(_inline_definition, definitions))
        return _INLINE_HEADER + quote(tools) + (_INLINE_RULES if rules else "")
    tools = "\n".join(json.dumps(_essentials(definition)) for definition in definitions)
    return _LIST + quote(tools) + (_FENCED_RULES if rules else "")


def _essentials(definition: Definition) -> dict[str, Any]:
    return {key: definition[key] for key in ("name", "description", "parameters") if key in definition}


def _inline_definition(definition: Definition) -> str:
    parameters = json.dumps(definition.get("parameters", {}), ensure_ascii=False)
    description = definition.get("description", "")
    return f"\n### {definition['name']}\nDescription: {description}\n\nParameters: {parameters}\n"
