"""The sampling fields that chat and plain completions share, and their way to the engine."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, TypeVar

from pydantic import Field
from trimaran.wire import SamplingParams

from trimaran_gateway.errors import bad_request, unsupported
from trimaran_gateway.schemas.base import (
    Body,
    Labels,
    LogitBias,
    Probability,
    Seed,
    StopString,
    StopStrings,
    TopK,
)

T = TypeVar("T")
MAX_ALTERNATIVES = 20
"""Most likely tokens that are told per position."""


class StreamOptions(Body):
    """What a stream carries besides text."""

    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: bool = False


def check_stream_options(options: StreamOptions | None, *, stream: bool) -> None:
    """Refuse options without a stream, and the one that cannot be honoured.

    Raises:
        ApiError: 400, naming the field.
    """
    if options is None:
        return
    if not stream:
        raise bad_request("stream_options needs stream: true", param="stream_options")
    if options.include_obfuscation:
        raise unsupported("stream_options.include_obfuscation", "chunks are not padded")


class SamplingBody(Labels, Body):
    """Fields with OpenAI's names and defaults, and vLLM's names for what OpenAI lacks."""

    model: str | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: TopK | None = None
    min_p: Probability | None = None
    seed: Seed | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=10)] | None = None
    logit_bias: LogitBias | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    ignore_eos: bool | None = None
    prompt_logprobs: Annotated[int, Field(ge=0, le=MAX_ALTERNATIVES)] | None = None
    stop: StopString | StopStrings | None = None
    stop_token_ids: Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=64)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    priority: Annotated[int, Field(ge=-(1 << 31), lt=1 << 31)] = 0

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings, however they were given."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def check(self) -> None:
        """Fail for what cannot be honoured together or at all.

        Raises:
            ApiError: 400, naming the field.
        """
        self.refuse_unsupported()
        check_stream_options(self.stream_options, stream=bool(self.stream))
        if self.prompt_logprobs is not None and self.stream:
            raise bad_request("prompt_logprobs does not go with stream: true", param="prompt_logprobs")

    def sampling(self, vocab_size: int, *, max_tokens: int | None, logprobs: int | None) -> SamplingParams:
        """The engine's parameters.

        Raises:
            ApiError: 400, for a token id outside the vocabulary.
        """
        bias = {int(token): float(value) for token, value in (self.logit_bias or {}).items()}
        _check_ids(bias, vocab_size, "logit_bias")
        _check_ids(self.stop_token_ids or (), vocab_size, "stop_token_ids")
        limit = max_tokens if max_tokens is not None else 1 << 31
        if (self.min_tokens or 0) > limit:
            raise bad_request(
                f"min_tokens {self.min_tokens} is more than max_tokens {limit}", param="min_tokens"
            )
        return SamplingParams(
            temperature=_or(self.temperature, 1.0),
            top_k=max(_or(self.top_k, 0), 0),
            top_p=_or(self.top_p, 1.0),
            min_p=_or(self.min_p, 0.0),
            seed=None if self.seed is None else self.seed % (1 << 63),
            frequency_penalty=_or(self.frequency_penalty, 0.0),
            presence_penalty=_or(self.presence_penalty, 0.0),
            repetition_penalty=_or(self.repetition_penalty, 1.0),
            logit_bias=bias,
            max_tokens=max_tokens,
            min_tokens=_or(self.min_tokens, 0),
            ignore_eos=bool(self.ignore_eos),
            logprobs=logprobs,
            prompt_logprobs=self.prompt_logprobs,
        )


def _or(value: T | None, default: T) -> T:
    return default if value is None else value


def _check_ids(ids: Iterable[int], vocab_size: int, param: str) -> None:
    for token in ids:
        if token >= vocab_size:
            raise bad_request(f"{param}: token {token} is not in the vocabulary of {vocab_size}", param=param)
