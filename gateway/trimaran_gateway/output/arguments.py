"""Arguments of a tool call as an object, for the dialects that want one."""

from __future__ import annotations

import json
from typing import Any

from trimaran_gateway.errors import ApiError


def parse_arguments(name: str, text: str) -> dict[str, Any]:
    """The JSON object that the model wrote for the function `name`.

    Raises:
        ApiError: 500, it is none.
    """
    try:
        arguments = json.loads(text)
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict):
        raise ApiError(
            500, f"the model called {name} with arguments that are no JSON object", code="bad_tool_call"
        )
    return arguments
