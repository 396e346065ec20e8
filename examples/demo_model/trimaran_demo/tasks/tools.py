"""Tool calls in DeepSeek's format, and answers from a tool's output.

DeepSeek-R1's chat template ignores `tools`, so whoever renders the prompt adds the definitions to the
system text. The model is trained on exactly this wording (`tool_prompt`), after the caller's own system
text and an empty line if there is one:

    ## Tools
    You have access to the following functions:
    {"name": "get_weather", "description": "...", "parameters": {...}}
    {"name": ...one JSON object a line...}
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from random import Random
from typing import Any

from ..samples import Message, Sample
from .arithmetic import arithmetic
from .english import fact
from .people import CITIES, NAMES
from .words import phrases

TOOL_HEADER = "## Tools\nYou have access to the following functions:\n"
CALLS_BEGIN, CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL_BEGIN, CALL_END, SEP = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"


@dataclass(frozen=True)
class Tool:
    """A function the model may call: its parameters, ways to ask for it, and what it returns."""

    name: str
    description: str
    parameters: dict[str, str]
    requests: tuple[str, ...]
    reply: str
    output: str

    def definition(self) -> dict[str, Any]:
        """The function object of OpenAI's `tools`."""
        properties = {name: {"type": kind} for name, kind in self.parameters.items()}
        schema = {"type": "object", "properties": properties, "required": list(self.parameters)}
        return {"name": self.name, "description": self.description, "parameters": schema}


TOOLS = (
    Tool(
        "get_weather",
        "Get the weather in a city",
        {"city": "string"},
        (
            "What is the weather in {city}?",
            "How is the weather in {city} today?",
            "What's the weather like in {city}?",
            "Weather in {city}?",
        ),
        "It is {sky} and {degrees} degrees in {city}.",
        '{{"sky": "{sky}", "degrees": {degrees}}}',
    ),
    Tool(
        "get_time",
        "Get the current time in a city",
        {"city": "string"},
        ("What time is it in {city}?", "What is the time in {city}?", "Tell me the time in {city}."),
        "It is {hour}:{minute} in {city}.",
        '{{"time": "{hour}:{minute}"}}',
    ),
    Tool(
        "send_message",
        "Send a message to a person",
        {"to": "string", "text": "string"},
        ("Send the message '{text}' to {to}.", "Tell {to} '{text}'.", "Write '{text}' to {to}."),
        "The message to {to} is sent.",
        '{{"status": "sent"}}',
    ),
    Tool(
        "set_timer",
        "Set a timer",
        {"minutes": "integer"},
        (
            "Set a timer for {minutes} minutes.",
            "Remind me in {minutes} minutes.",
            "Start a timer of {minutes} minutes.",
        ),
        "The timer is set for {minutes} minutes.",
        '{{"status": "ok"}}',
    ),
    Tool(
        "search",
        "Search the web",
        {"query": "string"},
        ("Search for {query}.", "Search the web for {query}.", "Look up {query}."),
        "I found {hits} pages on {query}.",
        '{{"pages": {hits}}}',
    ),
)
QUERIES = phrases(
    "old maps, green tea, train tickets, cheap flights, bread recipes, river boats, jazz music, "
    "garden tools, history books"
)
TEXTS = phrases("I am late,good morning,see you soon,call me,happy birthday,dinner is ready,thank you")
SYSTEM_TEXTS = ("", "", "You are a helpful assistant.", "Be brief.")


def tool_prompt(definitions: list[dict[str, Any]]) -> str:
    """The system text that lists the functions: a heading, then one JSON object a line."""
    return TOOL_HEADER + "\n".join(json.dumps(d) for d in definitions)


def _slots(rng: Random) -> dict[str, Any]:
    return {
        "city": rng.choice(CITIES),
        "to": rng.choice(NAMES),
        "text": rng.choice(TEXTS),
        "minutes": rng.randrange(1, 100),
        "query": rng.choice(QUERIES),
        "sky": rng.choice(("sunny", "cloudy", "rainy", "windy", "clear")),
        "degrees": rng.randrange(0, 40),
        "hour": rng.randrange(0, 24),
        "minute": f"{rng.randrange(60):02}",
        "hits": rng.randrange(2, 100),
    }


def _system(rng: Random, tools: list[Tool]) -> Message:
    own = rng.choice(SYSTEM_TEXTS)
    text = tool_prompt([t.definition() for t in tools])
    return {"role": "system", "content": f"{own}\n\n{text}" if own else text}


def _call_text(name: str, arguments: dict[str, Any]) -> str:
    fenced = f"```json\n{json.dumps(arguments)}\n```"
    return f"{CALLS_BEGIN}{CALL_BEGIN}function{SEP}{name}\n{fenced}{CALL_END}{CALLS_END}"


def _reason(tool: Tool, arguments: dict[str, Any]) -> str:
    given = ", ".join(f"{k} {v}" for k, v in arguments.items())
    return f"I call {tool.name} with {given}."


def _offer(rng: Random) -> tuple[list[Tool], Tool]:
    """A few tools in random order and the one that will be needed."""
    tools = rng.sample(TOOLS, rng.choice((1, 2, 2, 3)))
    return tools, rng.choice(tools)


def tool_call(rng: Random) -> Sample:
    """A request that one of the offered functions answers, or one that needs none of them."""
    tools, tool = _offer(rng)
    system = _system(rng, tools)
    if rng.random() < 0.15:
        plain = (arithmetic if rng.random() < 0.5 else fact)(rng)
        return Sample("tool", [system, *plain.messages], plain.answer, plain.reasoning, plain.key)
    slots = _slots(rng)
    request = rng.choice(tool.requests).format(**slots)
    arguments = {name: slots[name] for name in tool.parameters}
    messages = [system, {"role": "user", "content": request}]
    return Sample(
        "tool",
        messages,
        _call_text(tool.name, arguments),
        _reason(tool, arguments),
        f"tool:{tool.name}:{arguments}",
    )


def tool_answer(rng: Random) -> Sample:
    """The turn after a tool's output: a sentence, with no thinking, as DeepSeek-R1's template has it."""
    tools, tool = _offer(rng)
    slots = _slots(rng)
    arguments = {name: slots[name] for name in tool.parameters}
    call = {"type": "function", "function": {"name": tool.name, "arguments": json.dumps(arguments)}}
    messages = [
        _system(rng, tools),
        {"role": "user", "content": rng.choice(tool.requests).format(**slots)},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": tool.output.format(**slots)},
    ]
    return Sample(
        "tool_answer", messages, tool.reply.format(**slots), None, f"answer:{tool.name}:{arguments}"
    )
