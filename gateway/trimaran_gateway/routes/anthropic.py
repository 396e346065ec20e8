"""Anthropic's Messages API."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse

from trimaran_gateway import sse
from trimaran_gateway.answers.anthropic import PING, MessageStream, error_event, whole_message
from trimaran_gateway.chat.job import ChatJob, build_prompt, prepare
from trimaran_gateway.context import Gateway, gateway_of
from trimaran_gateway.openapi.errors import AnthropicError, answers
from trimaran_gateway.openapi.others import Message, TokenCount
from trimaran_gateway.output.collect import collect
from trimaran_gateway.schemas.anthropic import CountTokensRequest, MessagesRequest
from trimaran_gateway.streaming import open_stream, until_disconnect

router = APIRouter(tags=["anthropic"])
TheGateway = Annotated[Gateway, Depends(gateway_of)]


@router.post(
    "/v1/messages",
    response_class=JSONResponse,
    responses=answers(
        Message, error=AnthropicError, stream=sse.MEDIA_TYPE, event="`message_start` to `message_stop` events"
    ),
)
async def messages(body: MessagesRequest, request: Request, gateway: TheGateway) -> Response:
    """Answer a conversation, whole or (`stream`) as named server-sent events."""
    gateway.require_model(body.model)
    prompt = body.prompt()
    job = ChatJob(prompt, body.sampling(), tuple(body.stop_sequences or ()), one_call=body.one_call)
    requests = await prepare(gateway, job)
    events = gateway.generator.run_all(requests)
    show_thinking = prompt.thinking is True
    if not body.stream:
        answer = (await until_disconnect(request, collect(events, 1)))[0]
        return JSONResponse(whole_message(body.model, answer, show_thinking=show_thinking))
    stream = MessageStream(body.model, len(requests[0].prompt.ids), show_thinking=show_thinking)
    return await open_stream(
        request,
        stream.chunks(events),
        media_type=sse.MEDIA_TYPE,
        on_error=error_event,
        keepalive=PING,
        keepalive_s=gateway.keepalive_s,
    )


@router.post("/v1/messages/count_tokens", responses=answers(TokenCount, error=AnthropicError))
async def count_tokens(body: CountTokensRequest, gateway: TheGateway) -> dict[str, int]:
    """The length of the prompt that `/v1/messages` would make of the same body."""
    gateway.require_model(body.model)
    return {"input_tokens": len((await build_prompt(gateway, body.prompt(), to_count=True)).ids)}
