"""What a new server says first: its address, one real answer, and how to ask for more."""

from __future__ import annotations

import json
import shlex
import time

from trimaran.cli.api_client import ApiClient
from trimaran.cli.display import Display
from trimaran.errors import PeerError, RequestError

QUESTION = "What is 17 + 25?"
_MAX_TOKENS = 160


def greet(api: ApiClient, display: Display) -> None:
    """Prints the address, asks `QUESTION` through the HTTP API, and prints a `curl` line to go on with."""
    model = api.model()
    display.say(f"\nTrimaran serves {model} at {api.url}\n")
    ask(api, model, display)
    display.say(f"\nTry it:\n{curl_line(api, model)}\n")


def ask(api: ApiClient, model: str, display: Display) -> None:
    """Asks `QUESTION` and shows the answer as it comes. A failure is shown; the server goes on."""
    display.say(f"  you> {QUESTION}")
    started = time.monotonic()
    voice = ""
    try:
        messages = [{"role": "user", "content": QUESTION}]
        for delta in api.chat(messages, model=model, temperature=0, max_tokens=_MAX_TOKENS):
            speaker = f"{model} thinks" if delta.reasoning else model
            if speaker != voice:
                line_break = "\n" if voice else ""
                display.piece(f"{line_break}  {speaker}> ")
                voice = speaker
            display.piece(delta.text, dim=delta.reasoning)
    except (PeerError, RequestError) as error:
        display.say(f"\n  no answer: {error}")
        return
    elapsed = time.monotonic() - started
    tokens = api.usage.completion_tokens if api.usage else 0
    display.say(f"\n  ({tokens} tokens in {elapsed:.1f} s)")


def curl_line(api: ApiClient, model: str) -> str:
    """A command line that asks the same question."""
    body = {"model": model, "messages": [{"role": "user", "content": QUESTION}]}
    key = ' -H "Authorization: Bearer $API_KEY"' if api.has_key else ""
    return (
        f"curl {api.url}/v1/chat/completions -H 'Content-Type: application/json'{key}"
        f" -d {shlex.quote(json.dumps(body))}"
    )
