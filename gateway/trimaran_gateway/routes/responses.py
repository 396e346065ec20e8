"""OpenAI's Responses API, without server-side state."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse

from trimaran_gateway import sse
from trimaran_gateway.answers.responses import ResponseStream
from trimaran_gateway.chat.job import ChatJob, prepare
from trimaran_gateway.context import Gateway, gateway_of
from trimaran_gateway.openapi import openai
from trimaran_gateway.openapi.errors import answers
from trimaran_gateway.schemas.responses import ResponsesRequest
from trimaran_gateway.streaming import open_stream, until_disconnect

router = APIRouter(tags=["openai"])
TheGateway = Annotated[Gateway, Depends(gateway_of)]


@router.post(
    "/v1/responses",
    response_class=JSONResponse,
    responses=answers(openai.Response, stream=sse.MEDIA_TYPE, event="`response.*` events"),
)
async def responses(body: ResponsesRequest, request: Request, gateway: TheGateway) -> Response:
    """Answer a conversation with output items, whole or (`stream`) as named server-sent events."""
    gateway.require_model(body.model)
    body.check()
    prompt = body.prompt()
    one_call = bool(prompt.tools) and not body.parallel_tool_calls
    requests = await prepare(gateway, ChatJob(prompt, body.sampling(), one_call=one_call))
    events = gateway.generator.run_all(requests)
    stream = ResponseStream(body, gateway.model.name)
    if not body.stream:
        return JSONResponse(await until_disconnect(request, stream.whole(events)))
    return await open_stream(
        request,
        stream.chunks(events),
        media_type=sse.MEDIA_TYPE,
        on_error=stream.failed,
        keepalive=sse.KEEPALIVE,
        keepalive_s=gateway.keepalive_s,
    )
