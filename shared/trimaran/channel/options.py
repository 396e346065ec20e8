"""Bounds of a channel."""

from __future__ import annotations

from dataclasses import dataclass

from trimaran.channel.curve import CurveKeys


@dataclass(frozen=True)
class ChannelOptions:
    """Bounds of a channel.

    Attributes:
        high_water: messages queued per peer and direction before `send` answers False.
        linger_s: how long closing may wait for unsent messages.
        max_frame_bytes: a peer that sends a larger frame is disconnected.
        curve: keys for endpoints that other hosts can reach.
    """

    high_water: int = 1000
    linger_s: float = 0.5
    max_frame_bytes: int = 1 << 30
    curve: CurveKeys | None = None
