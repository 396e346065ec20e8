"""How deeply a JSON text is nested, found without parsing it: no recursion, no tree, linear time."""

from __future__ import annotations

import re

_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_ONE_KIND = bytes.maketrans(b"{}", b"[]")
_NOT_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")


def is_deeper(text: bytes, limit: int) -> bool:
    """Whether arrays and objects are nested more than `limit` deep, or their brackets do not match.

    Args:
        text: JSON in UTF-8; need not be valid.
        limit: greatest depth that passes; `[]` is 1 deep.
    """
    if text.count(b"[") + text.count(b"{") <= limit:
        return False
    brackets = _STRING.sub(b"", text).translate(_ONE_KIND, _NOT_BRACKETS)
    for _ in range(limit):
        if not brackets:
            return False
        brackets = brackets.replace(b"[]", b"")  # takes the innermost level away
    return bool(brackets)
