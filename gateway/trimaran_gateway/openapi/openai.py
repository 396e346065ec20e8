"""OpenAI's objects."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

FinishReason = Literal["stop", "length", "tool_calls"]


class PromptTokensDetails(BaseModel):
    """Tokens that were not computed again."""

    cached_tokens: int


class CompletionTokensDetails(BaseModel):
    """Tokens of the reasoning."""

    reasoning_tokens: int


class Usage(BaseModel):
    """Token counts."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class AnswerObject(BaseModel):
    """What every object of an answer repeats."""

    id: str
    created: int
    model: str
    system_fingerprint: str


class Alternative(BaseModel):
    """A token and its natural-log probability."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(Alternative):
    """A token of the answer, with the most likely ones in its place."""

    top_logprobs: list[Alternative]


class RankedLogprob(BaseModel):
    """A token at some position of a prompt; `rank` 1 is the most likely one."""

    logprob: float
    rank: int | None
    decoded_token: str


PromptLogprobs = list[dict[str, RankedLogprob] | None]
"""By position of the prompt, and then by token id; null for the first token."""


class ChatLogprobs(BaseModel):
    """One entry per token of the visible answer."""

    content: list[TokenLogprob]
    refusal: None


class Function(BaseModel):
    """A call; `arguments` is JSON text."""

    name: str
    arguments: str


class ToolCall(BaseModel):
    """A call of a tool."""

    id: str
    type: Literal["function"]
    function: Function


class ChatMessage(BaseModel):
    """The answer; `reasoning` is an alias of `reasoning_content`."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCall] | None = None


class ChatChoice(BaseModel):
    """One of `n` answers."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatCompletion(AnswerObject):
    """The answer to a conversation."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: Usage
    prompt_logprobs: PromptLogprobs | None = None


class CompletionLogprobs(BaseModel):
    """Parallel lists, one entry per token; the first token of a prompt follows nothing and has null."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One continuation."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"]
    prompt_logprobs: PromptLogprobs | None = None


class Completion(AnswerObject):
    """Continuations of one or several prompts."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]
    usage: Usage


class ModelMeta(BaseModel):
    """Facts about the file."""

    architecture: str
    n_params: int
    size: int
    quantization: str
    n_vocab: int
    n_ctx_train: int


class Model(BaseModel):
    """The served model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int
    meta: ModelMeta


class ModelList(BaseModel):
    """All models: one."""

    object: Literal["list"]
    data: list[Model]


class OutputItem(BaseModel):
    """A message, a piece of reasoning or a function call."""

    type: Literal["message", "reasoning", "function_call"]
    id: str
    status: Literal["in_progress", "completed", "incomplete"]
    content: list[dict[str, Any]] | None = None
    summary: list[Any] | None = None
    role: Literal["assistant"] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None


class InputTokensDetails(BaseModel):
    """Tokens that were not computed again."""

    cached_tokens: int


class ResponseUsage(BaseModel):
    """Token counts."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: CompletionTokensDetails
    total_tokens: int


class Response(BaseModel):
    """An answer made of items; it repeats the request's settings."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    error: dict[str, Any] | None
    incomplete_details: dict[str, str] | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: None
    usage: ResponseUsage | None
