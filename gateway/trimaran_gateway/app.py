"""The FastAPI application: routes, middleware and error envelopes around one `Gateway`."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from trimaran.errors import TrimaranError
from trimaran.telemetry import Log

from trimaran_gateway.context import Gateway
from trimaran_gateway.errors import DeadlineError, api_error, bad_request, validation_message
from trimaran_gateway.lost import explained, is_lost
from trimaran_gateway.middleware import Guard, error_response
from trimaran_gateway.routes import ROUTERS
from trimaran_gateway.routes.page import page_router
from trimaran_gateway.streaming import ClientGoneError
from trimaran_gateway.web.live import LiveReader, Model

_CLIENT_CLOSED = 499
_API_PATHS = frozenset(str(getattr(route, "path", "")) for router in ROUTERS for route in router.routes)
_log = Log(__name__)


def create_app(gateway: Gateway) -> FastAPI:
    """The application that serves `gateway`; whoever runs it starts and closes the engine client."""
    app = FastAPI(
        title="Trimaran",
        description="DeepSeek models over the OpenAI, Ollama and Anthropic protocols.",
        redirect_slashes=False,
        docs_url=None,  # FastAPI's pages load scripts from other hosts: ours is in routes.page
        redoc_url=None,
    )
    app.state.gateway = gateway
    for router in ROUTERS:
        app.include_router(router)
    live = LiveReader(gateway.engine, gateway.metrics, Model.of(gateway.model), gateway.crashes)
    app.include_router(page_router(live))
    app.add_exception_handler(RequestValidationError, _invalid)
    for kind in (HTTPException, TrimaranError, DeadlineError):
        app.add_exception_handler(kind, _expected)
    app.add_exception_handler(ClientGoneError, _client_gone)
    app.add_exception_handler(Exception, _unexpected)
    app.add_middleware(Guard, gateway=gateway)
    if gateway.config.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(gateway.config.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
        )
    return app


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problems = error.errors()
    # Of a union's branches, the one that got farthest is what the client meant.
    same_field = [problem for problem in problems if problem["loc"][:2] == problems[0]["loc"][:2]]
    message, param = validation_message(max(same_field, key=lambda problem: len(problem["loc"])))
    code = "invalid_json" if param is None else "invalid_value"
    return error_response(request.url.path, bad_request(message, param=param, code=code))


async def _expected(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException) and is_lost(error):
        error = explained(error, request.method, request.url.path, _API_PATHS)
    return error_response(request.url.path, api_error(error))


async def _client_gone(request: Request, error: Exception) -> Response:
    del request, error
    return Response(status_code=_CLIENT_CLOSED)


async def _unexpected(request: Request, error: Exception) -> Response:
    _log.error("a request failed", path=request.url.path, error=repr(error))
    return error_response(request.url.path, api_error(error))
