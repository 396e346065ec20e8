"""What the worker of gpu-check tells the process that watches it: one JSON line each. Imports no torch."""

from __future__ import annotations

from typing import Any

import msgspec


class Facts(msgspec.Struct, tag="facts", frozen=True):
    """About the machine: the GPU, versions."""

    values: dict[str, Any]


class Begin(msgspec.Struct, tag="begin", frozen=True):
    """A section starts."""

    section: str


class Figure(msgspec.Struct, tag="figure", frozen=True, kw_only=True):
    """A row of the table, as `Report.row` takes it."""

    case: str
    value: float | None  # None: not a number
    unit: str
    peer: str | None = None
    peer_value: float | None = None
    floor: float | None = None
    higher_is_better: bool = False


class Failed(msgspec.Struct, tag="failed", frozen=True):
    """Something differs, or broke; the section goes on unless `End` or the worker's end follows."""

    what: str


class Skipped(msgspec.Struct, tag="skipped", frozen=True):
    """Something cannot be done here."""

    what: str
    why: str


class Cut(msgspec.Struct, tag="cut", frozen=True):
    """A section had not come to its end when its time, or the run's, was over."""

    section: str
    why: str


class End(msgspec.Struct, tag="end", frozen=True):
    """A section is over."""

    section: str


Message = Facts | Begin | Figure | Failed | Skipped | Cut | End
_DECODER: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)


def encode(message: Message) -> bytes:
    """One line."""
    return msgspec.json.encode(message) + b"\n"


def decode(line: bytes) -> Message:
    """The message of a line."""
    return _DECODER.decode(line)
