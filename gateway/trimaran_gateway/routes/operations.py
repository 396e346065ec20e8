"""Health, readiness and metrics: for supervisors, load balancers and Prometheus."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response
from fastapi.responses import JSONResponse

from trimaran_gateway.context import Gateway, gateway_of
from trimaran_gateway.crashes import explain_crashes
from trimaran_gateway.engine.interface import Engine
from trimaran_gateway.errors import RETRY_AFTER_S
from trimaran_gateway.metrics import CONTENT_TYPE
from trimaran_gateway.openapi.errors import Responses, answers
from trimaran_gateway.openapi.others import Health

router = APIRouter(tags=["operations"])
_HEALTH: Responses = {
    200: {"model": Health, "description": "requests are answered"},
    503: {"model": Health, "description": "loading, draining or without an engine"},
}
TheGateway = Annotated[Gateway, Depends(gateway_of)]


_METRICS: Responses = {
    **answers(),
    200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "the text format"},
}


@router.get("/health", response_class=JSONResponse, responses=_HEALTH)
@router.get("/ready", response_class=JSONResponse, responses=_HEALTH)
async def health(gateway: TheGateway) -> Response:
    """200 while requests are answered; 503 with `status` and `progress` (0 to 1) while they are not.

    Of several engines one that takes requests is enough; `degraded` says that not all do, `engines` which.
    `crashes` tells of services that have crashed since the server started.
    """
    body = {**_state(gateway), **_crashes(gateway)}
    if body["status"] in ("ready", "degraded"):
        return JSONResponse(body)
    return JSONResponse(body, 503, {"Retry-After": str(RETRY_AFTER_S)})


@router.get("/metrics", response_class=Response, responses=_METRICS)
async def metrics(gateway: TheGateway) -> Response:
    """Prometheus metrics of the gateway, the engine and the expert services."""
    gateway.metrics.take_stats(await gateway.engine.stats(), gateway.engine.status)
    return Response(gateway.metrics.expose(), media_type=CONTENT_TYPE)


def _state(gateway: Gateway) -> dict[str, Any]:
    status = gateway.engine.status
    if gateway.is_draining:
        return {"status": "draining", "model": gateway.model.name}
    if status is None:
        return {"status": "unavailable", "detail": "the engine is not running", "progress": 0.0}
    return {
        "status": status.state,
        "detail": status.detail,
        "progress": 1.0 if status.state in ("ready", "degraded") else status.progress,
        "model": gateway.model.name,
        "context_length": status.context_length,
        **_engines(gateway.engine),
    }


def _crashes(gateway: Gateway) -> dict[str, Any]:
    """What happened to services that have crashed, if any has."""
    crashes = explain_crashes(gateway.crashes)
    return {"crashes": crashes} if crashes else {}


def _engines(engine: Engine) -> dict[str, Any]:
    """Each engine's state by label, if there are several."""
    if len(engine.statuses) == 1:
        return {}
    states = {label: "unavailable" if s is None else s.state for label, s in engine.statuses.items()}
    return {"engines": states}
