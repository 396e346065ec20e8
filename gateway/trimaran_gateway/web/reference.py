"""The API's reference as one page, made from the OpenAPI document: no script of others, no outside host."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

Json = Mapping[str, Any]

TAGS = {
    "openai": "OpenAI",
    "anthropic": "Anthropic",
    "ollama": "Ollama",
    "models": "Models",
    "utilities": "Utilities",
    "operations": "Operations",
}
"""Titles of the groups of operations, in the page's order."""

_PREFIX = "#/components/schemas/"
_BOUNDS = {
    "minimum": "≥ {}",
    "exclusiveMinimum": "> {}",
    "maximum": "≤ {}",
    "exclusiveMaximum": "< {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {} items",
    "maxItems": "at most {} items",
    "pattern": "matches {}",
}


def reference_page(page: bytes, document: Json) -> bytes:
    """The page's HTML with the operations and objects of an OpenAPI document in it.

    Args:
        page: HTML with the placeholders ``{{title}}`` and ``{{content}}``.
        document: as `FastAPI.openapi` makes it.
    """
    title = f"{document['info']['title']} {document['info']['version']}"
    content = "\n".join([*_operations(document["paths"]), *_objects(document["components"]["schemas"])])
    return page.replace(b"{{title}}", escape(title).encode()).replace(b"{{content}}", content.encode())


def _operations(paths: Json) -> Iterator[str]:
    for tag, title in TAGS.items():
        yield f"<h2>{title}</h2>"
        for path, methods in paths.items():
            for method, operation in methods.items():
                if operation["tags"][-1] == tag:
                    yield _operation(method, path, operation)


def _operation(method: str, path: str, operation: Json) -> str:
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    asked = f"<h3>Body</h3><p>{_type(body)}</p>" if body else ""
    rows = [
        (f"<code>{status}</code>", _text(answer["description"]), _contents(answer.get("content", {})))
        for status, answer in operation["responses"].items()
    ]
    inside = f"{asked}<h3>Answers</h3>{_table(rows)}"
    summary = (
        f'<code class="method">{method.upper()}</code> <code>{escape(path)}</code> '
        f'<span class="muted">{_text(operation["description"])}</span>'
    )
    return _details(f"{method}-{_slug(path)}", summary, inside)


def _contents(content: Json) -> str:
    return ", ".join(
        f"{_type(kind['schema'])} <small>{escape(name)}</small>" for name, kind in content.items()
    )


def _objects(schemas: Json) -> Iterator[str]:
    yield "<h2>Objects</h2>"
    for name, schema in sorted(schemas.items()):
        required = schema.get("required", ())
        rows = [
            (f"<code>{escape(field)}</code>", _type(value), _remarks(value, is_required=field in required))
            for field, value in schema.get("properties", {}).items()
        ]
        rows += [
            (f"<code>{escape(field)}</code>", "refused", _text(why))
            for field, why in schema.get("x-refused", {}).items()
        ]
        inside = f"<p>{_text(schema.get('description', ''))}</p>{_table(rows)}"
        yield _details(f"object-{_slug(name)}", f"<code>{escape(name)}</code>", inside)


def _details(name: str, summary: str, inside: str) -> str:
    return f'<details id="{name}"><summary>{summary}</summary><div class="inside">{inside}</div></details>'


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="table"><table>{body}</table></div>' if rows else ""


def _type(schema: Json) -> str:
    """A schema in a few words; objects with a name are links."""
    if "$ref" in schema:
        name = str(schema["$ref"]).removeprefix(_PREFIX)
        return f'<a href="#object-{_slug(name)}">{escape(name)}</a>'
    for choices in ("anyOf", "oneOf"):
        if choices in schema:
            return " or ".join(_type(choice) for choice in schema[choices])
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        return " or ".join(f"<code>{escape(repr(value))}</code>" for value in values)
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    bounds = [text.format(escape(str(schema[key]))) for key, text in _BOUNDS.items() if key in schema]
    return " ".join([escape(str(schema.get("type", "anything"))), ", ".join(bounds)]).strip()


def _remarks(schema: Json, *, is_required: bool) -> str:
    default = schema.get("default")
    parts = ["required"] if is_required else []
    parts += [] if default is None else [f"default <code>{escape(repr(default))}</code>"]
    parts += [_text(schema["description"])] if "description" in schema else []
    return "; ".join(parts)


def _text(text: str) -> str:
    """Prose with `code` in it."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text, quote=False))


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")
