"""One module per group of endpoints."""

from __future__ import annotations

from trimaran_gateway.routes import chat, completions, models, ollama, ollama_models, operations, utilities

ROUTERS = (
    chat.router,
    completions.router,
    models.router,
    ollama.router,
    ollama_models.router,
    utilities.router,
    operations.router,
)
