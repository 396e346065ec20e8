"""The page in front of the real gateway, with a scripted engine behind it."""

from __future__ import annotations

import hashlib
from typing import Any


def test_a_chat_through_the_gateway(page: Any, stack: Any) -> None:
    stack.engine.say("hello in world</think>**hello** world", delay_s=0.01, cached_tokens=2)
    page.open(f"{stack.url}/")
    assert page.text("#state-text") == stack.model.name
    page.say("hello")
    page.wait_answer()
    assert page.text(".reasoning summary").startswith("Thought for")
    assert page.js("document.querySelector('.thoughts').textContent") == "hello in world"
    assert page.text(".answer > .prose strong") == "hello"
    assert "2 cached" in page.text(".answer footer")
    page.click("#open-live")
    page.wait_text("#live", "Attention waits")
    assert "4,096 tokens" in page.text("#live")


def test_stopping_aborts_in_the_engine(page: Any, stack: Any, wait_for: Any) -> None:
    stack.engine.say("hello " * 500, delay_s=0.05)
    page.open(f"{stack.url}/")
    page.say("go on")
    page.wait_text(".thoughts", "hello hello")
    page.press("Escape")
    page.wait_answer()
    wait_for(lambda: len(stack.engine.aborts) == 1)


def test_parameters_that_the_gateway_refuses_are_explained(page: Any, stack: Any) -> None:
    page.open(f"{stack.url}/")
    page.click("#open-settings")
    page.click("#settings [name=tools]")
    page.type('[{"type": "function", "function": {"name": "no spaces"}}]')
    page.say("hello")
    page.wait_text(".answer .problem", "tools[0].function.name")


def test_a_locked_gateway_asks_for_its_key(page: Any, make_stack: Any) -> None:
    with make_stack(api_keys=(hashlib.sha256(b"secret").hexdigest(),)) as stack:
        page.open(f"{stack.url}/", wait=False)
        page.wait("document.getElementById('key-dialog').open")
        page.press("Escape")
        page.wait_text("#state-text", "needs a key")
        page.click("#state")
        page.wait("document.getElementById('key-dialog').open")
        page.type("secret")
        page.press("Enter")
        page.wait_text("#state-text", stack.model.name)
        stack.engine.say("</think>hello")
        page.say("hello")
        page.wait_answer()
        assert page.text(".answer > .prose") == "hello"
