"""Bodies of OpenAI's chat and plain completions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import Field, StringConstraints

from trimaran_gateway.chat.grammar import JsonForm
from trimaran_gateway.errors import bad_request, unsupported
from trimaran_gateway.schemas.base import (
    GRAMMAR_FIELDS,
    OTHER_HARMLESS,
    OTHER_NAMES,
    SAMPLER_FIELDS,
    SAMPLER_HARMLESS,
    Body,
)
from trimaran_gateway.schemas.messages import Messages, Tool, ToolChoice
from trimaran_gateway.schemas.sampling import MAX_ALTERNATIVES, SamplingBody

ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
TokenIds = list[Annotated[int, Field(ge=0)]]


class JsonSchemaFormat(Body):
    """A schema for the answer."""

    name: Annotated[str, StringConstraints(max_length=64)] | None = None
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None

    def form(self) -> JsonForm | None:
        """What the engine shall keep to; None is text.

        Raises:
            ApiError: 400, if the schema is missing.
        """
        if self.type == "text":
            return None
        if self.type == "json_object":
            return JsonForm({"type": "object"}, "response_format")
        if self.json_schema is None:
            where = "response_format.json_schema"
            raise bad_request(f"{where}: field required with type json_schema", param=where)
        is_strict = self.json_schema.strict is not False
        return JsonForm(self.json_schema.schema_, "response_format.json_schema.schema", is_strict)


class ChatCompletionRequest(SamplingBody):
    """`POST /v1/chat/completions`."""

    messages: Messages
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_ALTERNATIVES)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: ReasoningEffort | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    continue_final_message: bool = False
    add_generation_prompt: bool = True

    refused: ClassVar[Mapping[str, str]] = {
        **GRAMMAR_FIELDS,
        **SAMPLER_FIELDS,
        **OTHER_NAMES,
        "functions": "give the functions as tools",
        "function_call": "use tool_choice",
        "modalities": "this model takes and gives text only",
        "audio": "this model takes and gives text only",
        "prediction": "there is no speculation on a predicted answer",
        "store": "answers are not stored",
        "web_search_options": "there is no web search",
        "verbosity": "this model has no such switch",
        "best_of": "use n",
        "echo": "only /v1/completions repeats its prompt",
        "include_reasoning": "use reasoning_effort: none",
        "chat_template": "the model's own chat template is used",
        "documents": "put documents into messages",
    }
    harmless: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **SAMPLER_HARMLESS,
        **OTHER_HARMLESS,
        "echo": (False,),
        "include_reasoning": (True,),
        "add_special_tokens": (True, False),
        "modalities": (["text"],),
        "store": (False,),
        "function_call": ("auto", "none"),
        "functions": ([],),
        "verbosity": ("medium",),
        "best_of": (1,),
    }

    @property
    def answer_form(self) -> JsonForm | None:
        """The form of the answer, as `ResponseFormat.form`."""
        return None if self.response_format is None else self.response_format.form()

    @property
    def token_limit(self) -> int | None:
        """`max_completion_tokens`, or its older name."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @property
    def wanted_logprobs(self) -> int | None:
        """Alternatives per token, None without logprobs."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def thinking(self) -> bool | None:
        """Whether to reason: `enable_thinking` (or `thinking`) decides, then `reasoning_effort`."""
        kwargs = self.chat_template_kwargs or {}
        for name in ("enable_thinking", "thinking"):
            value = kwargs.get(name)
            if isinstance(value, bool):
                return value
            if value is not None:
                where = f"chat_template_kwargs.{name}"
                raise bad_request(f"{where}: must be a boolean", param=where)
        return None if self.reasoning_effort is None else self.reasoning_effort != "none"

    @property
    def template_variables(self) -> dict[str, Any]:
        """Variables for the chat template."""
        effort = {} if self.reasoning_effort is None else {"reasoning_effort": self.reasoning_effort}
        return {**effort, **(self.chat_template_kwargs or {})}

    def check(self) -> None:
        """Fail for what cannot be honoured together or at all.

        Raises:
            ApiError: 400, naming the field.
        """
        super().check()
        if self.top_logprobs and not self.logprobs:
            raise bad_request("top_logprobs needs logprobs: true", param="top_logprobs")
        if self.tool_choice not in (None, "none", "auto") and not self.tools:
            raise bad_request("tool_choice needs tools", param="tool_choice")
        if self.continue_final_message and self.tools and self.tool_choice not in (None, "none", "auto"):
            raise bad_request("a forced call cannot continue a message", param="continue_final_message")


class CompletionRequest(SamplingBody):
    """`POST /v1/completions`: continue a text, several texts, or token ids."""

    prompt: str | list[str] | TokenIds | list[TokenIds]
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_ALTERNATIVES)] | None = None
    echo: bool = False
    best_of: Annotated[int, Field(ge=1, le=128)] | None = None
    response_format: ResponseFormat | None = None
    add_special_tokens: bool = True

    refused: ClassVar[Mapping[str, str]] = {
        **GRAMMAR_FIELDS,
        **SAMPLER_FIELDS,
        **OTHER_NAMES,
        "suffix": "the model is not asked to fill in the middle",
    }
    harmless: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **SAMPLER_HARMLESS,
        **OTHER_HARMLESS,
        "suffix": ("",),
    }

    @property
    def prompts(self) -> list[str | list[int]]:
        """One entry per prompt."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(cast(list[str | list[int]], self.prompt))

    def check(self) -> None:
        """Fail for what cannot be honoured together or at all.

        Raises:
            ApiError: 400, naming the field.
        """
        super().check()
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise unsupported("best_of", "answers are not ranked; use n")
        if self.max_tokens == 0 and not self.echo and self.prompt_logprobs is None:
            raise bad_request("max_tokens: 0 needs echo: true or prompt_logprobs", param="max_tokens")
        if not self.prompts or len(self.prompts) > 128:
            raise bad_request("prompt: give 1 to 128 prompts", param="prompt")
