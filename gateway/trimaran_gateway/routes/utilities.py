"""The tokeniser and the chat template over HTTP, as llama.cpp and vLLM offer them."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends

from trimaran_gateway.chat.job import build_prompt
from trimaran_gateway.chat.prompt import ChatPromptRequest
from trimaran_gateway.context import Gateway, gateway_of
from trimaran_gateway.errors import bad_request
from trimaran_gateway.openapi.errors import answers
from trimaran_gateway.openapi.others import (
    DetokenizedText,
    LlamaTokens,
    PromptText,
    Props,
    TokenizerInfo,
    VllmTokens,
)
from trimaran_gateway.routes.chat import chat_prompt
from trimaran_gateway.schemas.messages import template_messages, template_tools
from trimaran_gateway.schemas.openai import ChatCompletionRequest
from trimaran_gateway.schemas.utilities import DetokenizeRequest, TokenizeRequest

router = APIRouter(tags=["utilities"])
TheGateway = Annotated[Gateway, Depends(gateway_of)]


@router.post("/tokenize", responses=answers(LlamaTokens | VllmTokens))
async def tokenize(body: TokenizeRequest, gateway: TheGateway) -> dict[str, Any]:
    """Token ids of a text or a conversation."""
    gateway.require_model(body.model)
    given = [name for name in ("content", "prompt", "messages") if getattr(body, name) is not None]
    if len(given) != 1:
        raise bad_request("give exactly one of content, prompt and messages", param="content")
    ids = await _ids(body, gateway)
    if body.content is not None:
        return {"tokens": [_piece(gateway, token) for token in ids] if body.with_pieces else ids}
    answer: dict[str, Any] = {
        "count": len(ids),
        "max_model_len": gateway.generator.context_length,
        "tokens": ids,
    }
    if body.return_token_strs:
        answer["token_strs"] = [gateway.model.tokenizer.vocabulary.tokens[token] for token in ids]
    return answer


@router.post("/detokenize", responses=answers(DetokenizedText))
async def detokenize(body: DetokenizeRequest, gateway: TheGateway) -> dict[str, str]:
    """Text of token ids, markers included: as `content` (llama.cpp) and as `prompt` (vLLM)."""
    gateway.require_model(body.model)
    tokenizer = gateway.model.tokenizer
    size = len(tokenizer.vocabulary)
    outside = next((token for token in body.tokens if token >= size), None)
    if outside is not None:
        raise bad_request(f"tokens: {outside} is not in the vocabulary of {size}", param="tokens")
    text = tokenizer.decode(body.tokens, keep_control=True)
    return {"content": text, "prompt": text}


@router.post("/apply-template", responses=answers(PromptText))
async def apply_template(body: ChatCompletionRequest, gateway: TheGateway) -> dict[str, str]:
    """The prompt text that `/v1/chat/completions` would continue for the same body."""
    gateway.require_model(body.model)
    body.check()
    return {"prompt": (await build_prompt(gateway, chat_prompt(body), to_count=True)).text}


@router.get("/tokenizer_info", responses=answers(TokenizerInfo))
async def tokenizer_info(gateway: TheGateway) -> dict[str, Any]:
    """The tokeniser's settings, as vLLM tells them to tools that have no tokeniser of their own."""
    model = gateway.model
    return {
        "tokenizer_class": "ByteLevelBPE",
        "bos_token": _token_text(gateway, model.tokenizer.bos_id) or None,
        "eos_token": _token_text(gateway, model.tokenizer.eos_id) or None,
        "add_bos_token": model.tokenizer.add_bos,
        "add_eos_token": False,
        "model_max_length": gateway.generator.context_length,
        "chat_template": model.template.source,
    }


@router.get("/props", responses=answers(Props))
async def props(gateway: TheGateway) -> dict[str, Any]:
    """llama.cpp's properties of the server."""
    tokenizer = gateway.model.tokenizer
    status = gateway.engine.status
    return {
        "default_generation_settings": {
            "n_ctx": gateway.generator.context_length,
            "params": {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "n_predict": -1},
        },
        "model_alias": gateway.model.name,
        "chat_template": gateway.model.template.source,
        "bos_token": _token_text(gateway, tokenizer.bos_id),
        "eos_token": _token_text(gateway, tokenizer.eos_id),
        "modalities": {"vision": False, "audio": False},
        "max_waiting": status.max_waiting if status else 0,
    }


async def _ids(body: TokenizeRequest, gateway: Gateway) -> list[int]:
    tokenizer = gateway.model.tokenizer
    if body.messages is not None:
        prompt = ChatPromptRequest(
            messages=template_messages(body.messages),
            tools=template_tools(body.tools),
            continue_final=body.continue_final_message,
            add_generation_prompt=body.add_generation_prompt,
            variables=body.chat_template_kwargs or {},
        )
        return (await build_prompt(gateway, prompt, to_count=True)).ids
    text = body.content if body.content is not None else body.prompt or ""
    wants_bos = body.add_special if body.content is not None else body.add_special_tokens
    add_bos, parse = wants_bos and tokenizer.add_bos, body.parse_special
    return await gateway.off_loop(
        lambda: tokenizer.encode(text, add_bos=add_bos, parse_added=parse), len(text)
    )


def _piece(gateway: Gateway, token: int) -> dict[str, Any]:
    """The token's text, or its bytes where they are no text by themselves."""
    piece = gateway.model.tokenizer.vocabulary.token_bytes(token)
    try:
        return {"id": token, "piece": piece.decode()}
    except UnicodeDecodeError:
        return {"id": token, "piece": list(piece)}


def _token_text(gateway: Gateway, token: int | None) -> str:
    return "" if token is None else gateway.model.tokenizer.vocabulary.tokens[token]
