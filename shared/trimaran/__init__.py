"""Trimaran: full-size DeepSeek models on one server."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_API = ("LoadedModel", "optimize_and_load_gguf", "prefill_and_generate")


def __getattr__(name: str) -> Any:
    """The Python API, which needs torch, is imported when it is first asked for (docs/python.md)."""
    if name not in _API:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("trimaran_attn.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_API})
