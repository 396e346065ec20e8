"""From what a request wants (a JSON schema, forced calls, strict tools) to the grammar of its answer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from trimaran.wire import LarkGrammar

from trimaran_gateway.chat.closed_schema import closed
from trimaran_gateway.chat.tools import ToolFormat
from trimaran_gateway.text.vocabulary import Markers

ReasoningState = Literal["open", "possible", "over"]
"""Whether the prompt ends inside the reasoning, lets the model begin one, or leaves no room for it."""

_SPACE = r"( |\n {0,24}|\n\t{0,12})"
"""White space between JSON's tokens: enough to indent, too little for a weak model to get lost in.

At most one of these stands between two tokens. What is inside a string is the answer's own, and unbounded.
"""

_EXACT = {"whitespace_pattern": _SPACE}
_LENIENT = {**_EXACT, "lenient": True, "coerce_one_of": True}


@dataclass(frozen=True)
class JsonForm:
    """The answer is one JSON value.

    Attributes:
        schema: JSON schema of the value.
        param: the request's field that holds it, for errors.
        strict: False passes over keywords that cannot be enforced; True refuses them.
    """

    schema: Any
    param: str
    strict: bool = True


@dataclass(frozen=True)
class CallForm:
    """What tool calls must look like.

    Attributes:
        functions: `function` objects of the tools on offer.
        strict: names of those whose schema must be kept to, also where the model may choose to call.
        forced: "" forces some call, a name that function's; None leaves the choice to the model.
        style: the model's way to write calls.
    """

    functions: Sequence[Mapping[str, Any]]
    strict: frozenset[str]
    forced: str | None
    style: ToolFormat

    @property
    def is_constrained(self) -> bool:
        """Whether calls need a grammar."""
        return bool(self.functions) and (self.forced is not None or bool(self.strict))


@dataclass(frozen=True)
class Constraint:
    """A grammar, and the request's field that a fault in it is blamed on."""

    grammar: LarkGrammar
    param: str


def json_constraint(form: JsonForm) -> Constraint:
    """Nothing but the JSON value."""
    return Constraint(LarkGrammar(text=f"start: {_json(form.schema, form.strict)}\n"), form.param)


def chat_constraint(
    answer: JsonForm | None,
    calls: CallForm,
    markers: Markers,
    reasoning: ReasoningState,
    thought_tokens: int | None = None,
) -> Constraint | None:
    """What a chat's answer must look like; None if anything goes.

    Args:
        answer: the form of an answer that is no call.
        calls: the form of calls.
        markers: the model's.
        reasoning: what may come before both.
        thought_tokens: the reasoning ends after so many tokens; None does not bound it.
    """
    has_budget = thought_tokens is not None and markers.can_reason and reasoning != "over"
    if answer is None and not calls.is_constrained and not has_budget:
        return None
    rules = [f"start: {_thought(markers, reasoning)}{_body(answer, calls)}"]
    rules.append(f"thought[max_tokens={thought_tokens}]: TEXT" if has_budget else "thought: TEXT")
    rules.append("TEXT: /(?s:.*)/")
    if answer is not None:
        rules.append(f"answer: {_json(answer.schema, answer.strict)}")
    if calls.functions:
        rules += _call_rules(calls, markers)
    param = _blamed(answer, calls)
    return Constraint(LarkGrammar(text="\n".join(rules) + "\n"), param)


def _blamed(answer: JsonForm | None, calls: CallForm) -> str:
    if answer is not None and calls.forced is None:
        return answer.param
    return "tools" if calls.functions else "thinking.budget_tokens"


def _thought(markers: Markers, reasoning: ReasoningState) -> str:
    if reasoning == "over" or not markers.can_reason:
        return ""
    thought = f"thought <[{markers.end_think}]> /\\n{{1,2}}/?"
    return f"{thought} " if reasoning == "open" else f"(<[{markers.think}]> {thought})? "


def _body(answer: JsonForm | None, calls: CallForm) -> str:
    if calls.functions and calls.forced is not None:
        return "calls"
    if answer is None:
        return "TEXT calls?" if calls.functions else "TEXT"
    return "(answer | calls)" if calls.functions else "answer"


def _call_rules(calls: CallForm, markers: Markers) -> Iterator[str]:
    """All of the text between the first marker of calls and the last."""
    wanted = [f for f in calls.functions if calls.forced in (None, "", f["name"])]
    between = '"\\n" ' if calls.style is ToolFormat.FENCED else ""
    yield f"calls: <[{markers.calls_begin}]> call ({between}call)* <[{markers.calls_end}]>"
    yield "call: " + " | ".join(f"call_{index}" for index in range(len(wanted)))
    for index, function in enumerate(wanted):
        schema = {"type": "object", **function.get("parameters", {})}
        arguments = _json(schema, function["name"] in calls.strict)
        yield f"arguments_{index}: {arguments}"
        yield f"call_{index}: {_call(calls.style, function['name'], f'arguments_{index}', markers)}"


def _call(style: ToolFormat, name: str, arguments: str, markers: Markers) -> str:
    begin, separator, end = (
        f"<[{token}]>" for token in (markers.call_begin, markers.tool_sep, markers.call_end)
    )
    if style is ToolFormat.INLINE:
        return f"{begin} {_text(name)} {separator} {arguments} {end}"
    opening = _text(f"{name}\n```json\n")
    return f'{begin} "function" {separator} {opening} {arguments} {_text(chr(10) + "```")} {end}'


def _text(text: str) -> str:
    """A literal; names of functions hold neither quotes nor backslashes."""
    return json.dumps(text)


def _json(schema: Any, strict: bool) -> str:
    """A value that `schema` allows; options that a client put into it are not ours."""
    options = _EXACT if strict else _LENIENT
    return f"%json {json.dumps({**closed(schema), 'x-guidance': options})}"
