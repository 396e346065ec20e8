"""What a request may ask of the sampler: every field is checked here, so that none is silently ignored."""

from __future__ import annotations

import math
from collections.abc import Iterable

from trimaran.errors import RequestError
from trimaran.wire import SamplingParams

MAX_LOGPROBS = 100
MAX_LOGIT_BIASES = 4096
MAX_REPETITION_PENALTY = 100.0
"""Its inverse is the least: beyond, logits near float32's ends would turn into no numbers."""
MAX_SHIFT = 100.0
"""What a bias or a penalty may add to a logit, either way."""


def check_sampling(params: SamplingParams, vocab_size: int) -> None:
    """Refuse values that the sampler has no meaning for.

    Raises:
        RequestError: naming the field.
    """
    _check(params.temperature >= 0, "temperature", params.temperature, "a number from 0 on")
    _check(params.top_k >= 0, "top_k", params.top_k, "a count from 0 on")
    _check(0 < params.top_p <= 1, "top_p", params.top_p, "above 0 and at most 1")
    _check(0 <= params.min_p <= 1, "min_p", params.min_p, "from 0 to 1")
    _check_shift("frequency_penalty", params.frequency_penalty)
    _check_shift("presence_penalty", params.presence_penalty)
    penalty, most = params.repetition_penalty, MAX_REPETITION_PENALTY
    _check(1 / most <= penalty <= most, "repetition_penalty", penalty, f"from {1 / most:g} to {most:g}")
    _check_lengths(params)
    for param, count in (("logprobs", params.logprobs), ("prompt_logprobs", params.prompt_logprobs)):
        if count is not None:
            most = min(MAX_LOGPROBS, vocab_size)
            _check(0 <= count <= most, param, count, f"from 0 to {most}")
    _check(len(params.logit_bias) <= MAX_LOGIT_BIASES, "logit_bias", len(params.logit_bias), "4096 at most")
    for bias in params.logit_bias.values():
        _check_shift("logit_bias", bias)
    check_token_ids(params.logit_bias, vocab_size, "logit_bias")


def check_token_ids(ids: Iterable[int], vocab_size: int, param: str) -> None:
    """Refuse ids that the vocabulary does not have.

    Raises:
        RequestError: naming `param` and the first such id.
    """
    for token in ids:
        _check(0 <= token < vocab_size, param, token, f"a token id below {vocab_size}")


def check_deadline(deadline: float | None) -> None:
    """Refuse a deadline that is no time to come.

    Raises:
        RequestError: naming it.
    """
    if deadline is not None:
        _check(deadline > 0, "deadline", deadline, "a number of seconds above 0")


def _check_lengths(params: SamplingParams) -> None:
    limit = params.max_tokens
    if limit is not None:
        _check(limit >= 1, "max_tokens", limit, "at least 1")
    valid = params.min_tokens >= 0 and (limit is None or params.min_tokens <= limit)
    _check(valid, "min_tokens", params.min_tokens, "from 0 to max_tokens")


def _check_shift(param: str, value: float) -> None:
    _check(abs(value) <= MAX_SHIFT, param, value, f"from {-MAX_SHIFT:g} to {MAX_SHIFT:g}")


def _check(valid: bool, param: str, value: float, wanted: str) -> None:
    if not (valid and math.isfinite(value)):
        raise RequestError(f"{param} is {value}, it must be {wanted}", code="invalid_request", param=param)
