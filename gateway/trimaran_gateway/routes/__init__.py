"""One module per group of endpoints."""

from __future__ import annotations

from trimaran_gateway.routes import (
    anthropic,
    chat,
    completions,
    models,
    ollama,
    ollama_models,
    operations,
    responses,
    utilities,
)

ROUTERS = (
    anthropic.router,
    chat.router,
    completions.router,
    models.router,
    ollama.router,
    ollama_models.router,
    responses.router,
    utilities.router,
    operations.router,
)
