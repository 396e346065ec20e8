"""Ollama's API: chat and generate."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse

from trimaran_gateway.answers import ollama
from trimaran_gateway.answers.ollama import OllamaAnswer
from trimaran_gateway.chat.grammar import json_constraint
from trimaran_gateway.chat.job import ChatJob, prepare, with_stop_ids
from trimaran_gateway.chat.prompt import ChatPromptRequest, Prompt
from trimaran_gateway.context import Gateway, gateway_of
from trimaran_gateway.errors import bad_request
from trimaran_gateway.generation import GenerationRequest
from trimaran_gateway.openapi.errors import OllamaError, answers
from trimaran_gateway.openapi.others import OllamaChat, OllamaGenerate
from trimaran_gateway.output.parser import OutputFormat
from trimaran_gateway.schemas.messages import strict_tools, template_tools
from trimaran_gateway.schemas.ollama import OllamaBody, OllamaChatRequest, OllamaGenerateRequest
from trimaran_gateway.streaming import open_stream, until_disconnect

router = APIRouter(tags=["ollama"])
TheGateway = Annotated[Gateway, Depends(gateway_of)]


@router.post(
    "/api/chat",
    response_class=JSONResponse,
    responses=answers(OllamaChat, error=OllamaError, stream=ollama.MEDIA_TYPE, event="lines of JSON"),
)
async def chat(body: OllamaChatRequest, request: Request, gateway: TheGateway) -> Response:
    """Answer a conversation, as lines of JSON unless `stream` is false."""
    gateway.require_model(body.model)
    body.check()
    answer = OllamaAnswer("chat", body.model)
    if not body.messages:
        return _idle(body, answer)
    prompt = ChatPromptRequest(
        messages=body.template_messages,
        tools=template_tools(body.tools),
        strict_tools=strict_tools(body.tools),
        answer=body.answer_form,
        thinking=body.thinking,
        continue_final=body.messages[-1].role == "assistant",
        variables=_variables(body),
    )
    generation = await _prepare(body, prompt, gateway)
    return await _answer(body, answer, generation, request, gateway)


@router.post(
    "/api/generate",
    response_class=JSONResponse,
    responses=answers(OllamaGenerate, error=OllamaError, stream=ollama.MEDIA_TYPE, event="lines of JSON"),
)
async def generate(body: OllamaGenerateRequest, request: Request, gateway: TheGateway) -> Response:
    """Answer one prompt through the chat template, or continue it as it is (`raw`)."""
    gateway.require_model(body.model)
    body.check()
    answer = OllamaAnswer("generate", body.model)
    if not body.prompt:
        return _idle(body, answer)
    generation = await (_raw if body.raw else _templated)(body, gateway)
    answer.context += generation.prompt.ids
    return await _answer(body, answer, generation, request, gateway)


async def _answer(
    body: OllamaBody, answer: OllamaAnswer, generation: GenerationRequest, request: Request, gateway: Gateway
) -> Response:
    events = gateway.generator.run_all([generation])
    if not body.stream:
        return JSONResponse(await until_disconnect(request, answer.whole(events)))
    return await open_stream(
        request,
        answer.lines(events),
        media_type=ollama.MEDIA_TYPE,
        on_error=ollama.error_line,
        keepalive=None,  # lines of JSON have no comments
        keepalive_s=gateway.keepalive_s,
    )


async def _prepare(body: OllamaBody, prompt: ChatPromptRequest, gateway: Gateway) -> GenerationRequest:
    sampling = body.options.sampling(gateway.generator.context_length)
    return (await prepare(gateway, ChatJob(prompt, sampling, body.options.stops)))[0]


async def _templated(body: OllamaGenerateRequest, gateway: Gateway) -> GenerationRequest:
    messages = [{"role": "system", "content": body.system}] if body.system else []
    messages.append({"role": "user", "content": body.prompt})
    prompt = ChatPromptRequest(
        messages, answer=body.answer_form, thinking=body.thinking, variables=_variables(body)
    )
    generation = await _prepare(body, prompt, gateway)
    if not body.context:
        return generation
    size = len(gateway.model.tokenizer.vocabulary)
    if max(body.context) >= size:
        raise bad_request(f"context: there are only {size} tokens in the vocabulary", param="context")
    ids = generation.prompt.ids
    ids = ids[1:] if ids[:1] == [gateway.model.tokenizer.bos_id] else ids
    return replace(generation, prompt=replace(generation.prompt, ids=[*body.context, *ids]))


async def _raw(body: OllamaGenerateRequest, gateway: Gateway) -> GenerationRequest:
    tokenizer = gateway.model.tokenizer
    encode = partial(tokenizer.encode, body.prompt, add_bos=tokenizer.add_bos)
    ids = await gateway.encode_prompt(lambda most: encode(most=most), len(body.prompt), "prompt")
    sampling, stop_ids = with_stop_ids(gateway, body.options.sampling(gateway.generator.context_length), ())
    output = OutputFormat(chat=False, stops=body.options.stops, stop_ids=stop_ids)
    form = body.answer_form
    constraint = None if form is None else json_constraint(form)
    return GenerationRequest(Prompt(ids, body.prompt, constraint=constraint), sampling, output)


def _variables(body: OllamaBody) -> dict[str, str]:
    return {"reasoning_effort": body.think} if isinstance(body.think, str) else {}


def _idle(body: OllamaBody, answer: OllamaAnswer) -> Response:
    """Clients load and unload models with empty requests; this one is always there."""
    reason = answer.idle("unload" if body.keep_alive in (0, "0", "0s") else "load")
    if body.stream:
        return Response(ollama.line(reason), media_type=ollama.MEDIA_TYPE)
    return JSONResponse(reason)
