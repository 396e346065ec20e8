"""What a server's start prints where there is no terminal."""

from __future__ import annotations

import io

from trimaran.cli.api_client import Health
from trimaran.cli.display import PlainDisplay


def health(state: str, detail: str = "", progress: float | None = None) -> Health:
    ready = state == "ready"
    return Health(answers=ready, ready=ready, state=state, detail=detail, progress=progress)


def test_states_of_a_start() -> None:
    """Each once; that no attention service is there yet is in order."""
    stream = io.StringIO()
    display = PlainDisplay(stream)
    with display.starting(("experts", "attn")):
        missing = health("unavailable", "the engine is not running")
        for told in (missing, missing, health("loading", "layer 3", 0.25), health("ready")):
            display.health(told)
    lines = [line.split(maxsplit=2)[2] for line in stream.getvalue().splitlines()]
    assert lines == [
        "starting experts, attn",
        "waiting for the attention service",
        "loading layer 3 25%",
        "ready",
    ]
