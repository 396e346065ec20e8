"""Bodies of Ollama's API."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from trimaran.wire import SamplingParams

from trimaran_gateway.chat.grammar import JsonForm
from trimaran_gateway.chat.template import Message
from trimaran_gateway.errors import bad_request, unsupported
from trimaran_gateway.schemas.base import (
    NO_SUCH_SAMPLER,
    Body,
    Probability,
    Seed,
    StopString,
    StopStrings,
    TopK,
)
from trimaran_gateway.schemas.messages import FunctionName, Tool

Think = bool | Literal["low", "medium", "high"]
_TO_THE_END = (-1, -2)


class Options(Body):
    """`options`. Those about Ollama's runner (num_gpu, num_thread, use_mmap…) are settings of this server."""

    temperature: Annotated[float, Field(ge=0, le=2)] = 0.8
    top_k: TopK = 40
    top_p: Annotated[float, Field(ge=0, le=1)] = 0.9
    min_p: Probability = 0.0
    seed: Seed | None = None
    num_predict: Annotated[int, Field(ge=-2)] = -1
    num_ctx: Annotated[int, Field(ge=1)] | None = None
    stop: StopString | StopStrings | None = None
    repeat_penalty: Annotated[float, Field(ge=0.01, le=10)] = 1.0
    repeat_last_n: Annotated[int, Field(ge=-1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0

    refused: ClassVar[Mapping[str, str]] = dict.fromkeys(("mirostat", "tfs_z", "typical_p"), NO_SUCH_SAMPLER)
    harmless: ClassVar[Mapping[str, tuple[Any, ...]]] = {"mirostat": (0,), "tfs_z": (1,), "typical_p": (1,)}

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings, however they were given."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def sampling(self, context_length: int) -> SamplingParams:
        """The engine's parameters.

        Raises:
            ApiError: 400, for what this server cannot do.
        """
        self.refuse_unsupported("options.")
        if self.num_ctx is not None and self.num_ctx > context_length:
            raise bad_request(
                f"options.num_ctx {self.num_ctx} is more than the context here, {context_length} tokens",
                param="options.num_ctx",
            )
        if self.num_predict == 0:
            raise bad_request("options.num_predict: 0 asks for nothing", param="options.num_predict")
        return SamplingParams(
            temperature=self.temperature,
            top_k=max(self.top_k, 0),
            top_p=self.top_p or 1.0,
            min_p=self.min_p,
            seed=None if self.seed is None or self.seed < 0 else self.seed,
            repetition_penalty=self._penalty(),
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            max_tokens=None if self.num_predict in _TO_THE_END else self.num_predict,
        )

    def _penalty(self) -> float:
        if self.repeat_last_n == 0:
            return 1.0
        if self.repeat_last_n not in (None, -1) and self.repeat_penalty != 1.0:
            raise unsupported("options.repeat_last_n", "the penalty looks at the whole text (-1)")
        return self.repeat_penalty


class OllamaBody(Body):
    """What chat and generate share."""

    model: str
    format: str | dict[str, Any] | None = None
    options: Options = Field(default_factory=Options)
    stream: bool = True
    think: Think | None = None
    keep_alive: str | float | None = None

    refused: ClassVar[Mapping[str, str]] = {
        "logprobs": "use /v1/completions",
        "top_logprobs": "use /v1/completions",
        "truncate": "a prompt that is too long is refused, not cut",
        "shift": "an answer ends at the end of the context",
    }
    harmless: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "logprobs": (False,),
        "top_logprobs": (0,),
        "truncate": (False,),
        "shift": (False,),
    }

    @property
    def thinking(self) -> bool | None:
        """Whether to reason."""
        return None if self.think is None else bool(self.think)

    @property
    def answer_form(self) -> JsonForm | None:
        """The form of the answer; None is text."""
        if not self.format:
            return None
        schema = {"type": "object"} if isinstance(self.format, str) else self.format
        return JsonForm(schema, "format")

    def check(self) -> None:
        """Fail for what cannot be honoured.

        Raises:
            ApiError: 400, naming the field.
        """
        self.refuse_unsupported()
        if isinstance(self.format, str) and self.format not in ("", "json"):
            raise bad_request(f"format: must be 'json' or a schema, got {self.format!r:.50}", param="format")


class OllamaFunction(Body):
    """The function of an earlier call; its arguments are an object."""

    name: FunctionName
    arguments: dict[str, Any] = Field(default_factory=dict)


class OllamaToolCall(Body):
    """An earlier call by the assistant."""

    function: OllamaFunction


class OllamaMessage(Body):
    """One message of the conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str = ""
    thinking: str | None = None
    images: list[str] | None = None
    tool_calls: list[OllamaToolCall] | None = None
    tool_name: str | None = None


class OllamaChatRequest(OllamaBody):
    """`POST /api/chat`."""

    messages: list[OllamaMessage] = Field(default_factory=list)
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None

    @property
    def template_messages(self) -> list[Message]:
        """The messages as chat templates read them.

        Raises:
            ApiError: 400, for images.
        """
        return [_template_message(index, message) for index, message in enumerate(self.messages)]


class OllamaGenerateRequest(OllamaBody):
    """`POST /api/generate`."""

    prompt: str = ""
    system: str | None = None
    context: list[Annotated[int, Field(ge=0)]] | None = None
    raw: bool = False
    suffix: str | None = None
    template: str | None = None
    images: list[str] | None = None

    def check(self) -> None:
        """Fail for what cannot be honoured.

        Raises:
            ApiError: 400, naming the field.
        """
        super().check()
        if self.suffix:
            raise unsupported("suffix", "the model is not asked to fill in the middle")
        if self.template:
            raise unsupported(
                "template", "the model's own chat template is used; raw takes a finished prompt"
            )
        if self.images:
            raise unsupported("images", "this model takes text only")
        if self.raw and (self.system or self.context):
            raise bad_request("raw takes neither system nor context", param="raw")


class ShowRequest(Body):
    """`POST /api/show`."""

    model: str | None = None
    name: str | None = None
    verbose: bool = False


def _template_message(index: int, message: OllamaMessage) -> Message:
    if message.images:
        raise unsupported(f"messages[{index}].images", "this model takes text only")
    result: Message = {"role": message.role, "content": message.content}
    if message.thinking:
        result["reasoning_content"] = message.thinking
    if message.tool_name:
        result["name"] = message.tool_name
    if message.tool_calls:
        result["content"] = message.content or None
        result["tool_calls"] = [
            {
                "id": "",
                "type": "function",
                "function": {
                    "name": call.function.name,
                    "arguments": json.dumps(call.function.arguments, ensure_ascii=False),
                },
            }
            for call in message.tool_calls
        ]
    return result
