from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
from trimaran.telemetry import Log, configure_logging


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def restore_root_logger() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)


def test_json_lines_off_a_terminal() -> None:
    out = io.StringIO()
    configure_logging("attn", "info", "auto", out)
    Log("x.y").info("ready", threads=3, isa="avx2", layers=(1, 2), level="shadow")
    Log("x.y").debug("hidden")
    (line,) = out.getvalue().splitlines()
    entry = json.loads(line)
    assert entry.pop("ts") > 0
    assert entry == {
        "level": "info",
        "service": "attn",
        "logger": "x.y",
        "message": "ready",
        "threads": 3,
        "isa": "avx2",
        "layers": [1, 2],
    }


def test_text_on_a_terminal() -> None:
    out = Terminal()
    configure_logging("attn", "info", "auto", out)
    Log("x").info("ready", seconds=1.23456, name="a b", empty="")
    assert out.getvalue().endswith('attn     INFO    ready seconds=1.235 name="a b" empty=""\n')
    Log("x").warning("careful")
    assert "\x1b[33m" in out.getvalue()


def test_nobody_forges_lines() -> None:
    out = io.StringIO()
    configure_logging("gateway", "info", "text", out)
    Log("x").info("prompt\n12:00:00 forged", user="a\x1b[2Jb\r\nc")
    assert len(out.getvalue().splitlines()) == 1
    assert "\x1b" not in out.getvalue()


def test_plain_logging_takes_the_same_form_and_setup_replaces_setup() -> None:
    first, second = io.StringIO(), io.StringIO()
    configure_logging("a", "info", "json", first)
    configure_logging("b", "warning", "json", second)
    logging.getLogger("library").warning("value %d", 3)
    logging.getLogger("library").info("hidden")
    assert first.getvalue() == ""
    assert json.loads(second.getvalue())["message"] == "value 3"


def test_exceptions_carry_their_traceback() -> None:
    out = io.StringIO()
    configure_logging("a", "info", "json", out)
    try:
        int("boom")
    except ValueError:
        Log("x").exception("failed")
    entry = json.loads(out.getvalue())
    assert "ValueError: invalid literal" in entry["traceback"]
