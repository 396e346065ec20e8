"""Ollama's API: what is there, and what this server does not do."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Depends

from trimaran_gateway.answers.ollama import timestamp
from trimaran_gateway.context import Gateway, gateway_of
from trimaran_gateway.errors import ApiError, bad_request
from trimaran_gateway.openapi.errors import OllamaError, answers, not_there
from trimaran_gateway.openapi.others import OllamaModels, OllamaShow, OllamaVersion
from trimaran_gateway.schemas.ollama import ShowRequest

OLLAMA_VERSION = "0.12.0"
"""The version of Ollama whose API this one follows; clients compare it."""

router = APIRouter(tags=["ollama"])
TheGateway = Annotated[Gateway, Depends(gateway_of)]


@router.get("/api/version", responses=answers(OllamaVersion, error=OllamaError))
async def version() -> dict[str, str]:
    """A version that Ollama's clients understand."""
    return {"version": OLLAMA_VERSION}


@router.get("/api/tags", responses=answers(OllamaModels, error=OllamaError))
async def tags(gateway: TheGateway) -> dict[str, Any]:
    """The one model."""
    return {"models": [{**_card(gateway), "modified_at": timestamp(gateway.model.facts.modified)}]}


@router.get("/api/ps", responses=answers(OllamaModels, error=OllamaError))
async def running(gateway: TheGateway) -> dict[str, Any]:
    """The one model; it stays loaded."""
    if not gateway.engine.is_ready:
        return {"models": []}
    far = datetime.now(UTC) + timedelta(days=36500)
    card = {**_card(gateway), "expires_at": timestamp(far), "size_vram": 0}
    return {"models": [{**card, "context_length": gateway.generator.context_length}]}


@router.post("/api/show", responses=answers(OllamaShow, error=OllamaError))
async def show(body: ShowRequest, gateway: TheGateway) -> dict[str, Any]:
    """Facts about the model; `verbose` adds the vocabulary's size."""
    name = body.model or body.name
    if name is None:
        raise bad_request("model: field required", param="model")
    gateway.require_model(name)
    model, facts = gateway.model, gateway.model.facts
    markers = model.tokenizer.vocabulary.markers
    capabilities = ["completion"]
    capabilities += ["tools"] if markers.can_call_tools else []
    capabilities += ["thinking"] if markers.can_reason else []
    info = {
        key: value for key, value in facts.metadata.items() if not key.startswith("tokenizer.chat_template")
    }
    info |= {"general.parameter_count": facts.parameters}
    if body.verbose:
        info["tokenizer.ggml.vocab_size"] = len(model.tokenizer.vocabulary)
    return {
        "modelfile": f"FROM {model.name}\n",
        "parameters": "",
        "template": model.template.source,
        "details": _details(gateway),
        "model_info": info,
        "capabilities": capabilities,
        "modified_at": timestamp(facts.modified),
    }


def _refuse(what: str) -> None:
    raise ApiError(501, f"this server serves one model and does not {what}", code="not_implemented")


@router.post("/api/embed", status_code=501, responses=not_there(OllamaError))
@router.post("/api/embeddings", status_code=501, responses=not_there(OllamaError))
async def embed() -> None:
    """Not there: a chat model gives no embeddings."""
    _refuse("make embeddings")


@router.post("/v1/embeddings", status_code=501, tags=["openai"], responses=not_there())
async def openai_embeddings() -> None:
    """Not there: a chat model gives no embeddings."""
    _refuse("make embeddings")


@router.post("/api/pull", status_code=501, responses=not_there(OllamaError))
@router.post("/api/push", status_code=501, responses=not_there(OllamaError))
@router.post("/api/create", status_code=501, responses=not_there(OllamaError))
@router.post("/api/copy", status_code=501, responses=not_there(OllamaError))
@router.delete("/api/delete", status_code=501, responses=not_there(OllamaError))
async def manage() -> None:
    """Not there: the model is chosen when the server starts."""
    _refuse("manage models")


def _card(gateway: Gateway) -> dict[str, Any]:
    name = gateway.model.name if ":" in gateway.model.name else f"{gateway.model.name}:latest"
    return {
        "name": name,
        "model": name,
        "size": gateway.model.facts.nbytes,
        "digest": gateway.model.digest,
        "details": _details(gateway),
    }


def _details(gateway: Gateway) -> dict[str, Any]:
    facts = gateway.model.facts
    return {
        "parent_model": "",
        "format": "gguf",
        "family": facts.architecture,
        "families": [facts.architecture],
        "parameter_size": _short(facts.parameters),
        "quantization_level": facts.quantization,
    }


def _short(count: int) -> str:
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= size:
            return f"{count / size:.1f}{letter}"
    return str(count)
