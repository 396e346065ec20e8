"""`/v1/models`."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends

from trimaran_gateway.context import Gateway, gateway_of
from trimaran_gateway.openapi.errors import answers
from trimaran_gateway.openapi.openai import Model, ModelList

router = APIRouter(tags=["models"])
TheGateway = Annotated[Gateway, Depends(gateway_of)]


@router.get("/v1/models", responses=answers(ModelList))
async def list_models(gateway: TheGateway) -> dict[str, Any]:
    """The one model that is served."""
    return {"object": "list", "data": [_card(gateway)]}


@router.get("/v1/models/{model:path}", responses=answers(Model))
async def get_model(model: str, gateway: TheGateway) -> dict[str, Any]:
    """One model by its name."""
    gateway.require_model(model)
    return _card(gateway)


def _card(gateway: Gateway) -> dict[str, Any]:
    facts = gateway.model.facts
    return {
        "id": gateway.model.name,
        "object": "model",
        "created": int(facts.modified.timestamp()),
        "owned_by": "trimaran",
        "max_model_len": gateway.generator.context_length,
        "meta": {
            "architecture": facts.architecture,
            "n_params": facts.parameters,
            "size": facts.nbytes,
            "quantization": facts.quantization,
            "n_vocab": len(gateway.model.tokenizer.vocabulary),
            "n_ctx_train": facts.context_length,
        },
    }
