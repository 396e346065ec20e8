"""A real Chromium, driven over DevTools."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import queue
import signal
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
TIMEOUT_S = 20.0


class DevTools:
    """The DevTools protocol over a pair of pipes: JSON, each message ended by a zero byte."""

    def __init__(self, executable: str, profile: Path) -> None:
        self._numbers = itertools.count(1)
        self._answers: dict[int, queue.SimpleQueue[dict[str, Any]]] = {}
        self.events: deque[dict[str, Any]] = deque(maxlen=10_000)
        self._pid, self._write, self._read = _start(executable, profile)
        self._reader = threading.Thread(target=self._receive, daemon=True)
        self._reader.start()

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        self._answers[number] = queue.SimpleQueue()
        message = {"id": number, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        answer = self._answers[number].get(timeout=TIMEOUT_S)
        del self._answers[number]
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def close(self) -> None:
        os.killpg(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        self._reader.join(TIMEOUT_S)
        os.close(self._write)
        os.close(self._read)

    def _receive(self) -> None:
        rest = b""
        while data := os.read(self._read, 1 << 20):
            *messages, rest = (rest + data).split(b"\0")
            for message in map(json.loads, messages):
                if "id" in message:
                    self._answers[message["id"]].put(message)
                else:
                    self.events.append(message)


def _start(executable: str, profile: Path) -> tuple[int, int, int]:
    """Start the browser; its process group, the end to write to and the end to read from."""

    def high(fd: int) -> int:  # out of the way of 3 and 4, which the browser expects
        copy = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 64)
        os.close(fd)
        return copy

    theirs_read, ours_write = map(high, os.pipe())
    ours_read, theirs_write = map(high, os.pipe())
    null = os.open(os.devnull, os.O_RDWR)
    pid = os.posix_spawn(
        executable,
        [executable, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
        os.environ,
        file_actions=[
            *((os.POSIX_SPAWN_DUP2, null, fd) for fd in (0, 1, 2)),
            (os.POSIX_SPAWN_DUP2, theirs_read, 3),
            (os.POSIX_SPAWN_DUP2, theirs_write, 4),
        ],
        setpgroup=0,
    )
    for fd in (theirs_read, theirs_write, null):
        os.close(fd)
    return pid, ours_write, ours_read


class Page:
    """One tab with a profile of its own."""

    def __init__(self, devtools: DevTools) -> None:
        self._devtools = devtools
        self._context = devtools.call("Target.createBrowserContext")["browserContextId"]
        target = devtools.call("Target.createTarget", url="about:blank", browserContextId=self._context)
        attached = devtools.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session: str = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self._devtools.call(method, self._session, **params)

    def open(
        self,
        url: str,
        *,
        size: tuple[int, int] = (1200, 800),
        theme: str = "light",
        touch: bool = False,
        wait: bool = True,
    ) -> None:
        """Go there, and `wait` until the page has heard from its server."""
        self.resize(size, touch=touch)
        features = [{"name": "prefers-color-scheme", "value": theme}]
        self.call("Emulation.setEmulatedMedia", features=features)
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")
        if wait:
            self.wait("document.getElementById('state-text').textContent !== 'connecting …'")

    def resize(self, size: tuple[int, int], *, touch: bool = False) -> None:
        width, height = size
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=touch,
        )
        self.call("Emulation.setTouchEmulationEnabled", enabled=touch)

    def js(self, expression: str) -> Any:
        """The value of an expression, awaited if it is a promise."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True, userGesture=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, expression: str, timeout_s: float = TIMEOUT_S) -> Any:
        """Wait until an expression is true."""
        deadline = time.monotonic() + timeout_s
        while not (value := self.js(expression)):
            assert time.monotonic() < deadline, f"never true: {expression}"
            time.sleep(0.03)
        return value

    def text(self, selector: str) -> str:
        """What a person reads in the first such element, or an empty string."""
        return self.js(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''")

    def wait_text(self, selector: str, part: str) -> None:
        """Wait until some text can be read there."""
        self.wait(
            f"(document.querySelector({json.dumps(selector)})?.innerText ?? '').includes({json.dumps(part)})"
        )

    def click(self, selector: str) -> None:
        """A real click into the middle of the element."""
        self.wait(f"document.querySelector({json.dumps(selector)})?.getClientRects().length")
        x, y = self.js(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); "
            "e.scrollIntoView({block: 'nearest'}); const b = e.getBoundingClientRect(); "
            "return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def type(self, text: str) -> None:
        """Text into whatever has the focus."""
        self.call("Input.insertText", text=text)

    def press(self, key: str, *, shift: bool = False) -> None:
        """One key, with all that a browser does for it."""
        codes = {"Enter": 13, "Escape": 27, "Tab": 9, "/": 191}
        text = {"Enter": "\r", "/": "/"}.get(key, "")
        event = {"key": key, "windowsVirtualKeyCode": codes[key], "modifiers": 8 if shift else 0}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **event)
        self.call("Input.dispatchKeyEvent", type="keyUp", **event)

    def say(self, text: str) -> None:
        """Type a message and send it."""
        self.click("#prompt")
        self.type(text)
        if self.js("matchMedia('(pointer: coarse)').matches"):
            self.click("#send")  # there Enter makes a new line
        else:
            self.press("Enter")

    def wait_answer(self, number: int = 1) -> None:
        """Wait until that many answers are complete."""
        self.wait(f"document.querySelectorAll('.answer[aria-busy=false]').length === {number}")

    def troubles(self) -> list[str]:
        """Exceptions, console errors and policy violations so far; failed requests are not among them."""
        found = []
        for event in self._devtools.events:
            if event.get("sessionId") != self._session:
                continue
            params = event["params"]
            if event["method"] == "Runtime.exceptionThrown":
                found.append(json.dumps(params["exceptionDetails"]))
            elif event["method"] == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
                found.append(json.dumps(params["args"]))
            elif event["method"] == "Log.entryAdded" and params["entry"]["source"] != "network":
                found.append(params["entry"]["text"])
        return found

    def close(self) -> None:
        self._devtools.call("Target.disposeBrowserContext", browserContextId=self._context)
