"""How deeply a JSON text is nested, found without parsing it: no recursion, no tree, linear time."""

from __future__ import annotations

import re

import numpy as np

_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_NOT_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")


def depth_of(text: bytes) -> int:
    """The greatest number of arrays and objects that are open at once; `[]` is 1 deep.

    Args:
        text: JSON in UTF-8. It need not be valid: a parser finds the error before it gets any deeper.
    """
    steps = _STRING.sub(b"", text).translate(_STEPS, _NOT_BRACKETS)
    if not steps:
        return 0
    return max(0, int(np.cumsum(np.frombuffer(steps, np.int8), dtype=np.int32).max()))


def is_deeper(text: bytes, limit: int) -> bool:
    """Whether `text` is more than `limit` deep; at once, if it has no more brackets than that."""
    return text.count(b"[") + text.count(b"{") > limit and depth_of(text) > limit
