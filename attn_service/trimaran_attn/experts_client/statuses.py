"""What an expert service answered, as an error."""

from __future__ import annotations

from trimaran.errors import KernelError, PeerError, TrimaranError
from trimaran.wire import Status

_MEANINGS = {
    Status.BAD_LAYER: "it has no such layer",
    Status.BAD_TOKEN_COUNT: "the number of tokens does not fit",
    Status.BAD_EXPERT_ID: "an expert id is out of range",
    Status.BAD_SLOT: "it has no such slot",
    Status.NOT_FINITE: "the input holds NaN or infinity",
    Status.INTERNAL: "it failed inside",
}


def meaning(status: int) -> str:
    """What a status says."""
    return _MEANINGS.get(status, f"unknown status {status}")


def status_error(status: int, endpoint: str, layer: int, message: str = "") -> TrimaranError:
    """The error for a status other than OK."""
    if status == Status.SHUTTING_DOWN:
        return PeerError(f"expert service {endpoint} is shutting down")
    return KernelError(f"expert service {endpoint} refused layer {layer}: {message or meaning(status)}")
