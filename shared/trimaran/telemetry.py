"""Structured logging: readable lines on a terminal, one JSON object a line elsewhere.

A process calls `configure_logging` once, when it starts. Whoever logs makes a `Log`, with facts as keywords:

    log = Log(__name__)
    log.info("ready", isa="avx2", threads=8)

Modules that use `logging` directly appear in the same form. Text stays one line a record: control characters
in messages are escaped, so that nothing a client sends can forge a line.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import TextIO

from trimaran.config import LogLevel

MAX_FIELD_CHARS = 2000
_FIELDS = "trimaran_fields"
_NOISY = ("httpx", "httpcore", "asyncio", "urllib3", "filelock", "uvicorn", "uvicorn.error")
_ANSI = {"WARNING": "\x1b[33m", "ERROR": "\x1b[31m", "CRITICAL": "\x1b[31m", "DEBUG": "\x1b[2m"}


class Log:
    """A named logger whose methods take the message and facts about it."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def debug(self, message: str, **fields: object) -> None:
        """For whoever looks for a fault."""
        self._log(logging.DEBUG, message, fields)

    def info(self, message: str, **fields: object) -> None:
        """Normal events: started, ready, stopped."""
        self._log(logging.INFO, message, fields)

    def warning(self, message: str, **fields: object) -> None:
        """Something is wrong, but the service goes on."""
        self._log(logging.WARNING, message, fields)

    def error(self, message: str, **fields: object) -> None:
        """Something failed."""
        self._log(logging.ERROR, message, fields)

    def exception(self, message: str, **fields: object) -> None:
        """Something failed that should not; call it in an `except` block: the traceback goes along."""
        self._log(logging.ERROR, message, fields, exc_info=True)

    def _log(self, level: int, message: str, fields: dict[str, object], *, exc_info: bool = False) -> None:
        if self._logger.isEnabledFor(level):
            self._logger.log(level, "%s", message, extra={_FIELDS: fields}, exc_info=exc_info, stacklevel=3)


def configure_logging(
    service: str, level: LogLevel = "info", style: str = "auto", stream: TextIO | None = None
) -> None:
    """Sends this process's records, `level` and above, to `stream` (stderr when None).

    Args:
        service: the name that each record carries, e.g. `attn`.
        level: the least severe level that is written.
        style: `text`, `json`, or `auto`: text if the stream is a terminal.
        stream: where the lines go.
    """
    out = sys.stderr if stream is None else stream
    is_terminal = out.isatty()
    use_text = style == "text" or (style == "auto" and is_terminal)
    handler = logging.StreamHandler(out)
    handler.setFormatter(TextFormatter(service, colour=is_terminal) if use_text else JsonFormatter(service))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    for name in _NOISY:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    logging.captureWarnings(capture=True)


class JsonFormatter(logging.Formatter):
    """`{"ts": …, "level": "info", "service": "attn", "logger": …, "message": "ready", "isa": "avx2"}`."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self.service = service

    def format(self, record: logging.LogRecord) -> str:
        """One JSON object without line breaks."""
        entry: dict[str, object] = {
            "ts": round(record.created, 6),
            "level": record.levelname.lower(),
            "service": self.service,
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name, value in _fields(record).items():
            entry.setdefault(name, _plain(value))
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """`14:20:03 attn     INFO  ready isa=avx2 threads=8`."""

    def __init__(self, service: str, *, colour: bool = False) -> None:
        super().__init__()
        self.service = service
        self.colour = colour

    def format(self, record: logging.LogRecord) -> str:
        """One line, and a traceback below it if there is one."""
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        fields = "".join(f" {name}={_readable(value)}" for name, value in _fields(record).items())
        text = _one_line(record.getMessage())
        line = f"{clock} {self.service:8} {record.levelname:7} {text}{fields}"
        if self.colour and record.levelname in _ANSI:
            line = f"{_ANSI[record.levelname]}{line}\x1b[0m"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _fields(record: logging.LogRecord) -> dict[str, object]:
    fields: dict[str, object] = getattr(record, _FIELDS, {})
    return fields


def _plain(value: object) -> object:
    if isinstance(value, (bool, int, float, type(None))):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value)[:MAX_FIELD_CHARS]


def _readable(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = _one_line(str(value)[:MAX_FIELD_CHARS])
    return f'"{text}"' if not text or " " in text else text


def _one_line(text: str) -> str:
    """The text with line breaks and other control characters escaped."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
