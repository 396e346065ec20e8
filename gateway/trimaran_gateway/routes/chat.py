"""`/v1/chat/completions`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse

from trimaran_gateway import sse
from trimaran_gateway.answers.openai import AnswerHead
from trimaran_gateway.answers.openai_chat import ChatAnswerOptions, chat_answer, chat_chunks
from trimaran_gateway.chat.job import ChatJob, prepare
from trimaran_gateway.chat.prompt import ChatPromptRequest
from trimaran_gateway.context import Gateway, gateway_of
from trimaran_gateway.openapi.errors import answers
from trimaran_gateway.openapi.openai import ChatCompletion
from trimaran_gateway.output.collect import collect
from trimaran_gateway.schemas.messages import forced_call, strict_tools, template_messages, template_tools
from trimaran_gateway.schemas.openai import ChatCompletionRequest
from trimaran_gateway.streaming import open_stream, until_disconnect

router = APIRouter(tags=["openai"])
TheGateway = Annotated[Gateway, Depends(gateway_of)]


@router.post(
    "/v1/chat/completions",
    response_class=JSONResponse,
    responses=answers(ChatCompletion, stream=sse.MEDIA_TYPE, event="`chat.completion.chunk`s, `[DONE]`"),
)
async def chat_completions(body: ChatCompletionRequest, request: Request, gateway: TheGateway) -> Response:
    """Answer a conversation, whole or (`stream`) as server-sent events."""
    gateway.require_model(body.model)
    body.check()
    requests = await prepare(gateway, _job(body, gateway))
    events = gateway.generator.run_all(requests)
    head = answer_head("chatcmpl", gateway)
    options = _options(body)
    vocabulary = gateway.model.tokenizer.vocabulary
    if not body.stream:
        answers = await until_disconnect(request, collect(events, len(requests)))
        return JSONResponse(chat_answer(head, answers, vocabulary, options))
    return await open_stream(
        request,
        chat_chunks(head, events, vocabulary, options),
        media_type=sse.MEDIA_TYPE,
        on_error=sse.openai_error,
        keepalive=sse.KEEPALIVE,
        keepalive_s=gateway.keepalive_s,
    )


def answer_head(prefix: str, gateway: Gateway) -> AnswerHead:
    """The head of a new answer."""
    status = gateway.engine.status
    return AnswerHead(prefix, gateway.model.name, f"fp_{status.model_fingerprint[:12] if status else ''}")


def chat_prompt(body: ChatCompletionRequest) -> ChatPromptRequest:
    """The prompt that a body asks for."""
    tools = template_tools(body.tools) if body.tool_choice != "none" else []
    return ChatPromptRequest(
        messages=template_messages(body.messages),
        tools=tools,
        force_call=forced_call(body.tool_choice, tools),
        strict_tools=strict_tools(body.tools),
        answer=body.answer_form,
        thinking=body.thinking,
        continue_final=body.continue_final_message,
        add_generation_prompt=body.add_generation_prompt,
        variables=body.template_variables,
    )


def _job(body: ChatCompletionRequest, gateway: Gateway) -> ChatJob:
    prompt = chat_prompt(body)
    return ChatJob(
        prompt=prompt,
        sampling=body.sampling(
            len(gateway.model.tokenizer.vocabulary),
            max_tokens=body.token_limit,
            logprobs=body.wanted_logprobs,
        ),
        stops=body.stops,
        stop_ids=tuple(body.stop_token_ids or ()),
        one_call=bool(prompt.tools) and body.parallel_tool_calls is False,
        n=body.n or 1,
        priority=body.priority,
    )


def _options(body: ChatCompletionRequest) -> ChatAnswerOptions:
    stream = body.stream_options
    return ChatAnswerOptions(
        logprobs=bool(body.logprobs),
        prompt_logprobs=body.prompt_logprobs,
        include_usage=stream is not None and stream.include_usage,
        continuous_usage=stream is not None and stream.continuous_usage_stats,
    )
