"""Messages of one union to frames and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec

MAX_FRAMES = 8
"""Raw frames that may follow a message."""

In = TypeVar("In")


@dataclass(frozen=True)
class Received(Generic[In]):
    """One message. `peer` is the sender's id on a server and empty on a client; `frames` hold its tensors."""

    peer: bytes
    message: In
    frames: tuple[memoryview, ...] = ()


@dataclass(frozen=True)
class Malformed:
    """Something that is no message of this channel arrived from `peer`; `reason` is one line for the log."""

    peer: bytes
    reason: str


class Codec(Generic[In]):
    """Messages of one union to frames and back."""

    def __init__(self, receives: Any) -> None:
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(receives)

    def encode(self, message: msgspec.Struct) -> bytes:
        """The first frame."""
        return self._encoder.encode(message)

    def decode_routed(self, parts: list[memoryview]) -> Received[In] | Malformed:
        """Frames that a ROUTER received: the peer's id, then the message."""
        return self.decode(bytes(parts[0]), parts[1:])

    def decode(self, peer: bytes, parts: list[memoryview]) -> Received[In] | Malformed:
        """A message and its raw frames."""
        if not parts:
            return Malformed(peer, "a message without frames")
        if len(parts) > MAX_FRAMES + 1:
            return Malformed(peer, f"{len(parts) - 1} raw frames; at most {MAX_FRAMES} may follow a message")
        try:
            message: In = self._decoder.decode(parts[0])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return Malformed(peer, f"no message of this channel: {error}")
        return Received(peer, message, tuple(parts[1:]))
