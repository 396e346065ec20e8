"""Bytes and counts as people write them: `24GiB`, `512M`, `128K`."""

from __future__ import annotations

import re

from trimaran.errors import ConfigError

_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)(B?)\s*$", re.IGNORECASE)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def parse_bytes(text: str) -> int:
    """`24GiB`, `24G` and `24Gi` are powers of 1024; `24GB` is a power of 1000; `4096` is in bytes.

    Raises:
        ConfigError: the text is no such size.
    """
    match = _SIZE.match(text)
    if match is None:
        raise ConfigError(f"{text!r} is no amount of memory", remedy="write it as 24GiB, 512M or 4096")
    number, prefix, binary, byte = match.groups()
    base = 1000 if byte and not binary else 1024
    return int(float(number) * base ** _POWERS[prefix.upper()])


def parse_count(text: str) -> int:
    """A count of tokens: `4096`, `128K` (1024 each) or `1M`.

    Raises:
        ConfigError: the text is no such count.
    """
    match = re.match(r"^\s*(\d+)\s*([KM]?)\s*$", text, re.IGNORECASE)
    if match is None:
        raise ConfigError(f"{text!r} is no number of tokens", remedy="write it as 4096 or 128K")
    return int(match[1]) * int(1024 ** _POWERS[match[2].upper()])


def format_bytes(n: float) -> str:
    """The size with three significant digits in a binary unit, e.g. `10.9 GiB`."""
    sign = "-" if n < 0 else ""
    value, unit = abs(float(n)), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1000:
            break
        value, unit = value / 1024, larger
    digits = 0 if unit == "B" or value >= 100 else 1 if value >= 10 else 2
    return f"{sign}{value:.{digits}f} {unit}"
