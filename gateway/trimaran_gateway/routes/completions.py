"""`/v1/completions`."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse
from msgspec import structs

from trimaran_gateway import sse
from trimaran_gateway.answers.openai_completion import (
    CompletionAnswerOptions,
    completion_answer,
    completion_chunks,
)
from trimaran_gateway.chat.grammar import json_constraint
from trimaran_gateway.chat.job import with_stop_ids
from trimaran_gateway.chat.prompt import Prompt
from trimaran_gateway.context import Gateway, gateway_of
from trimaran_gateway.errors import bad_request
from trimaran_gateway.generation import GenerationRequest
from trimaran_gateway.openapi.errors import answers
from trimaran_gateway.openapi.openai import Completion
from trimaran_gateway.output.collect import collect
from trimaran_gateway.output.parser import OutputFormat
from trimaran_gateway.routes.chat import answer_head
from trimaran_gateway.schemas.openai import CompletionRequest
from trimaran_gateway.streaming import open_stream, until_disconnect

router = APIRouter(tags=["openai"])
TheGateway = Annotated[Gateway, Depends(gateway_of)]


@router.post(
    "/v1/completions",
    response_class=JSONResponse,
    responses=answers(Completion, stream=sse.MEDIA_TYPE, event="`text_completion` objects, `[DONE]`"),
)
async def completions(body: CompletionRequest, request: Request, gateway: TheGateway) -> Response:
    """Continue one or several prompts, whole or (`stream`) as server-sent events."""
    gateway.require_model(body.model)
    body.check()
    requests = await _requests(body, gateway)
    events = gateway.generator.run_all(requests)
    head = answer_head("cmpl", gateway)
    options = _options(body, requests)
    vocabulary = gateway.model.tokenizer.vocabulary
    if not body.stream:
        answers = await until_disconnect(request, collect(events, len(requests)))
        return JSONResponse(completion_answer(head, answers, vocabulary, options))
    return await open_stream(
        request,
        completion_chunks(head, events, vocabulary, options),
        media_type=sse.MEDIA_TYPE,
        on_error=sse.openai_error,
        keepalive=sse.KEEPALIVE,
        keepalive_s=gateway.keepalive_s,
    )


async def _requests(body: CompletionRequest, gateway: Gateway) -> list[GenerationRequest]:
    vocabulary = gateway.model.tokenizer.vocabulary
    max_tokens = body.max_tokens if body.max_tokens is not None else _DEFAULT_MAX_TOKENS
    wanted = body.sampling(len(vocabulary), max_tokens=max_tokens, logprobs=body.logprobs)
    if body.echo and body.logprobs is not None:
        wanted = structs.replace(wanted, prompt_logprobs=max(body.logprobs, body.prompt_logprobs or 0))
    sampling, stop_ids = with_stop_ids(gateway, wanted, tuple(body.stop_token_ids or ()))
    output = OutputFormat(chat=False, stops=body.stops, stop_ids=stop_ids)
    form = None if body.response_format is None else body.response_format.form()
    constraint = None if form is None else json_constraint(form)
    requests: list[GenerationRequest] = []
    for given in body.prompts:
        prompt = replace(await _prompt(given, body, gateway), constraint=constraint)
        request = GenerationRequest(prompt, sampling, output, body.priority)
        requests += gateway.generator.fan_out(request, body.n or 1)
    return requests


_DEFAULT_MAX_TOKENS = 16
"""OpenAI's default for plain completions."""


async def _prompt(given: str | list[int], body: CompletionRequest, gateway: Gateway) -> Prompt:
    tokenizer = gateway.model.tokenizer
    if isinstance(given, str):
        add_bos = tokenizer.add_bos and body.add_special_tokens
        encode = partial(tokenizer.encode, given, add_bos=add_bos)
        return Prompt(
            await gateway.encode_prompt(lambda most: encode(most=most), len(given), "prompt"), given
        )
    size = len(tokenizer.vocabulary)
    outside = next((token for token in given if token >= size), None)
    if outside is not None:
        raise bad_request(f"prompt: token {outside} is not in the vocabulary of {size}", param="prompt")
    return Prompt(given, tokenizer.decode(given))


def _options(body: CompletionRequest, requests: list[GenerationRequest]) -> CompletionAnswerOptions:
    stream = body.stream_options
    return CompletionAnswerOptions(
        prompts=tuple(request.prompt for request in requests),
        per_prompt=body.n or 1,
        echo=body.echo,
        logprobs=body.logprobs,
        prompt_logprobs=body.prompt_logprobs,
        include_usage=stream is not None and stream.include_usage,
        continuous_usage=stream is not None and stream.continuous_usage_stats,
    )
