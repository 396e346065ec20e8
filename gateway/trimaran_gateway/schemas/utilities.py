"""Bodies of the tokeniser's endpoints, in llama.cpp's and vLLM's dialects."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from trimaran_gateway.schemas.base import Body
from trimaran_gateway.schemas.messages import Messages, Tool


class TokenizeRequest(Body):
    """llama.cpp's `content`, or vLLM's `prompt` or `messages`: one of the three."""

    model: str | None = None
    content: str | None = None
    add_special: bool = False
    parse_special: bool = True
    with_pieces: bool = False
    prompt: str | None = None
    add_special_tokens: bool = True
    return_token_strs: bool = False
    messages: Messages | None = None
    tools: list[Tool] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] | None = None


class DetokenizeRequest(Body):
    """Token ids."""

    model: str | None = None
    tokens: list[Annotated[int, Field(ge=0)]]
