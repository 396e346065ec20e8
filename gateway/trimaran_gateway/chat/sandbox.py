"""The Jinja environment that chat templates run in: no escape, no endless loop, no flood of text.

A template comes with a model file from the internet, so it may read what it is given and nothing else
(`ImmutableSandboxedEnvironment`), and a `Budget` bounds its loops, its text and its time.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from datetime import datetime
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MAX_ITERATIONS = 2_000_000
MAX_CHARS = 32 << 20
MAX_SECONDS = 10.0

_budget: ContextVar[Budget] = ContextVar("template_budget")


class TemplateRefusalError(TemplateError):
    """The template called `raise_exception`: it does not accept these messages."""


class Budget:
    """What one rendering may still use. Enter it around the rendering."""

    def __init__(
        self, iterations: int = MAX_ITERATIONS, chars: int = MAX_CHARS, seconds: float = MAX_SECONDS
    ) -> None:
        self._iterations = iterations
        self._chars = chars
        self._deadline = time.monotonic() + seconds

    def __enter__(self) -> Budget:
        self._token = _budget.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        _budget.reset(self._token)

    def charge(self, iterations: int) -> None:
        """Account for a loop's rounds."""
        self._iterations -= iterations
        if self._iterations < 0:
            raise SecurityError("the chat template loops too often")
        self.check_time()

    def check_time(self) -> None:
        """Fail once the time is over."""
        if time.monotonic() > self._deadline:
            raise SecurityError("the chat template takes too long")

    def check_size(self, size: int) -> None:
        """Fail if one value, or all output, would grow beyond the bound."""
        if size > self._chars:
            raise SecurityError("the chat template makes too much text")


class Environment(ImmutableSandboxedEnvironment):
    """The sandbox with the names that chat templates expect, as Hugging Face's tokenisers define them."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[LoopControlExtension, GenerationExtension]
        )
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now
        self.filters["tojson"] = _tojson
        self.filters["_bounded_loop"] = _bounded_loop
        self.filters["_bounded_text"] = _bounded_text

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """Calls what the template calls, if time is left; no width or count, and no result, may be huge."""
        budget = _budget.get()
        budget.check_time()
        for value in (*args[2:], *kwargs.values()):
            if isinstance(value, int):
                budget.check_size(value)
        return _bounded_text(super().call(*args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Refuses products and powers whose result would be huge, before it is made."""
        budget = _budget.get()
        if operator == "**" or (operator == "%" and isinstance(left, str)):
            raise SecurityError(f"the chat template uses {operator}, which is not supported here")
        if operator == "*":
            for sequence, times in ((left, right), (right, left)):
                if isinstance(sequence, (str, list, tuple)) and isinstance(times, int):
                    budget.check_size(len(sequence) * max(times, 0))
        return _bounded_text(super().call_binop(context, operator, left, right))

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        """Parses, then puts every loop and every `~` under the budget."""
        tree: nodes.Template = _Bounder().visit(super()._parse(source, name, filename))
        return tree


class _Bounder(NodeTransformer):
    """Sends what loops run over, and what `~` joins, through the budget's filters."""

    def visit_For(self, node: nodes.For) -> nodes.For:  # noqa: N802 (the visitor's naming)
        self.generic_visit(node)
        node.iter = _filtered(node.iter, "_bounded_loop")
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:  # noqa: N802
        self.generic_visit(node)
        return _filtered(node, "_bounded_text")


class GenerationExtension(Extension):
    """`{% generation %}…{% endgeneration %}` marks the assistant's text for training: shown as it is."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own declaration)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The block's body."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _filtered(node: nodes.Node, name: str) -> nodes.Filter:
    wrapped = nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)
    wrapped.environment = node.environment
    return wrapped


def _bounded_loop(values: Iterable[Any]) -> list[Any]:
    rounds = list(values)
    _budget.get().charge(len(rounds))
    return rounds


def _bounded_text(value: Any) -> Any:
    if isinstance(value, (str, list, tuple)):
        _budget.get().check_size(len(value))
    return value


def _raise_exception(message: object) -> None:
    raise TemplateRefusalError(str(message))


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


Renderer = Callable[..., str]


def compile_template(source: str) -> Renderer:
    """A function that renders `source` with keyword arguments under a fresh `Budget`.

    Raises:
        TemplateError: now, for bad syntax; when called, for whatever the template does wrong.
    """
    template = Environment().from_string(source)

    def render(**variables: Any) -> str:
        with Budget() as budget:
            chunks, size = [], 0
            for chunk in template.generate(**variables):
                size += len(chunk)
                budget.check_size(size)
                chunks.append(chunk)
            return "".join(chunks)

    return render
