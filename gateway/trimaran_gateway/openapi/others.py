"""Answers of the other dialects: Anthropic's, Ollama's, llama.cpp's and the server's own."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel


class MessageUsage(BaseModel):
    """Token counts; what came from the cache is not in `input_tokens`."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int


class ContentBlock(BaseModel):
    """Text, thinking or a call; which of the fields are there depends on `type`."""

    type: Literal["text", "thinking", "tool_use"]
    text: str | None = None
    thinking: str | None = None
    signature: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None


class Message(BaseModel):
    """Anthropic's answer to a conversation."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[ContentBlock]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]
    stop_sequence: str | None
    usage: MessageUsage


class TokenCount(BaseModel):
    """Length of a prompt."""

    input_tokens: int


class OllamaAnswer(BaseModel):
    """What Ollama's answers share; durations are in nanoseconds. The counts come with a generated answer."""

    model: str
    created_at: str
    done: bool
    done_reason: Literal["stop", "length", "load", "unload"]
    total_duration: int | None = None
    load_duration: int | None = None
    prompt_eval_count: int | None = None
    prompt_eval_duration: int | None = None
    eval_count: int | None = None
    eval_duration: int | None = None


class OllamaFunction(BaseModel):
    """A call; the arguments are an object."""

    name: str
    arguments: dict[str, Any]


class OllamaCall(BaseModel):
    """A call of a tool."""

    function: OllamaFunction


class OllamaMessage(BaseModel):
    """The answer's message."""

    role: Literal["assistant"]
    content: str
    thinking: str | None = None
    tool_calls: list[OllamaCall] | None = None


class OllamaChat(OllamaAnswer):
    """The answer of `/api/chat`."""

    message: OllamaMessage


class OllamaGenerate(OllamaAnswer):
    """The answer of `/api/generate`; `context` continues the conversation."""

    response: str
    thinking: str | None = None
    context: list[int] | None = None


class OllamaVersion(BaseModel):
    """The version of Ollama whose API this one follows."""

    version: str


class OllamaDetails(BaseModel):
    """Facts about the model."""

    parent_model: str
    format: str
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str


class OllamaModel(BaseModel):
    """The served model: with `modified_at` in `/api/tags`, with the other two in `/api/ps`."""

    name: str
    model: str
    size: int
    digest: str
    details: OllamaDetails
    modified_at: str | None = None
    expires_at: str | None = None
    size_vram: int | None = None
    context_length: int | None = None


class OllamaModels(BaseModel):
    """One model, or none while nothing is loaded."""

    models: list[OllamaModel]


class OllamaShow(BaseModel):
    """Facts about the model; `model_info` has the file's scalar keys."""

    modelfile: str
    parameters: str
    template: str
    details: OllamaDetails
    model_info: dict[str, str | int | float | bool]
    capabilities: list[str]
    modified_at: str


class Piece(BaseModel):
    """A token and its text, or its bytes where they are no text by themselves."""

    id: int
    piece: str | list[int]


class LlamaTokens(BaseModel):
    """llama.cpp's answer to `content`."""

    tokens: list[int] | list[Piece]


class VllmTokens(BaseModel):
    """vLLM's answer to `prompt` or `messages`."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizedText(BaseModel):
    """The text, under llama.cpp's name and vLLM's."""

    content: str
    prompt: str


class TokenizerInfo(BaseModel):
    """vLLM's facts about the tokeniser."""

    tokenizer_class: str
    bos_token: str | None
    eos_token: str | None
    add_bos_token: bool
    add_eos_token: bool
    model_max_length: int
    chat_template: str


class PromptText(BaseModel):
    """The rendered chat template."""

    prompt: str


class Props(BaseModel):
    """llama.cpp's properties of a server."""

    default_generation_settings: dict[str, Any]
    model_alias: str
    chat_template: str
    bos_token: str
    eos_token: str
    modalities: dict[str, bool]
    max_waiting: int


class Health(BaseModel):
    """The state of the server; `progress` is 0 to 1 while it loads."""

    status: str
    detail: str | None = None
    progress: float | None = None
    model: str | None = None
    context_length: int | None = None
    engines: dict[str, str] | None = None
    crashes: dict[str, str] | None = None
