"""What the tokens of a GGUF file's byte-level vocabulary stand for."""

from __future__ import annotations

from enum import IntEnum
from functools import cache


class TokenType(IntEnum):
    """Values of `tokenizer.ggml.token_type`."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


ADDED_TYPES = (TokenType.CONTROL, TokenType.USER_DEFINED)
"""Types of the tokens that lie outside the byte-pair encoding: markers, as plain text in the file."""


@cache
def byte_alphabet() -> dict[str, int]:
    """The byte-level alphabet of GPT-2: the printable character that stands for each byte value."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    table.update({chr(256 + index): byte for index, byte in enumerate(rest)})
    return table


def token_bytes(token: str, kind: int) -> bytes:
    """The UTF-8 bytes (maybe part of a character) that a token stands for, markers included.

    Args:
        token: its entry of `tokenizer.ggml.tokens`.
        kind: its entry of `tokenizer.ggml.token_type`.
    """
    if kind in ADDED_TYPES:
        return token.encode()
    alphabet = byte_alphabet()
    try:
        return bytes(alphabet[char] for char in token)
    except KeyError:  # not in the alphabet: an added token that the file marks as normal
        return token.encode()
