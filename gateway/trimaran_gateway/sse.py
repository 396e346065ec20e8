"""Server-sent events."""

from __future__ import annotations

from typing import Any

import msgspec

from trimaran_gateway.errors import ApiError, openai_envelope

MEDIA_TYPE = "text/event-stream"
KEEPALIVE = b": still working\n\n"
DONE = b"data: [DONE]\n\n"

_encoder = msgspec.json.Encoder()


def data(value: Any) -> bytes:
    """An event without a name."""
    return b"data: " + _encoder.encode(value) + b"\n\n"


def named(name: str, value: Any) -> bytes:
    """An event with a name."""
    return b"event: " + name.encode() + b"\ndata: " + _encoder.encode(value) + b"\n\n"


def openai_error(error: ApiError) -> bytes:
    """The last event of a stream that failed."""
    return data(openai_envelope(error))
