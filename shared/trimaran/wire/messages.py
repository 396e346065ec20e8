"""What the messages of both links have in common."""

from __future__ import annotations

import msgspec

PROTOCOL_VERSION = 4
"""Travels in every hello, and changes with any incompatible change of a message."""


class Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", forbid_unknown_fields=True):
    """Base of every message; `tag` tells it from the others of its union."""


class TraceSpan(msgspec.Struct, frozen=True, array_like=True):
    """What a thread did, in nanoseconds of the host's monotonic clock; `layer` is -1 outside of layers."""

    thread: str
    name: str
    start_ns: int
    end_ns: int
    layer: int = -1
    tokens: int = 0
