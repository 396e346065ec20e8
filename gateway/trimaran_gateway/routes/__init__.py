"""One module per group of endpoints."""

from __future__ import annotations

from trimaran_gateway.routes import chat, completions, models, operations

ROUTERS = (chat.router, completions.router, models.router, operations.router)
