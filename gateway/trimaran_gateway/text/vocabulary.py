"""The tokens of a GGUF file: their bytes, their kinds, and the markers that DeepSeek models speak with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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


@cache
def byte_alphabet() -> dict[str, int]:
    """The byte-level alphabet of GPT-2: the printable character that stands for each byte value."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    table.update({chr(256 + index): byte for index, byte in enumerate(rest)})
    return table


@dataclass(frozen=True)
class Markers:
    """Ids of the tokens with a meaning in DeepSeek's chat formats; None: the vocabulary has no such token."""

    think: int | None
    end_think: int | None
    user: int | None
    assistant: int | None
    calls_begin: int | None
    calls_end: int | None
    call_begin: int | None
    call_end: int | None
    tool_sep: int | None

    @property
    def can_reason(self) -> bool:
        """Whether reasoning has tokens of its own."""
        return self.think is not None and self.end_think is not None

    @property
    def can_call_tools(self) -> bool:
        """Whether tool calls have tokens of their own."""
        return None not in (self.calls_begin, self.calls_end, self.call_begin, self.call_end, self.tool_sep)


class Vocabulary:
    """Token texts and kinds by id.

    Args:
        tokens: `tokenizer.ggml.tokens`; normal ones in the byte-level alphabet, added ones as plain text.
        types: `tokenizer.ggml.token_type`, one per token.
    """

    def __init__(self, tokens: Sequence[str], types: Sequence[int]) -> None:
        self.tokens = tokens
        self.types = types
        added = (TokenType.CONTROL, TokenType.USER_DEFINED)
        self.added = {tokens[i]: i for i, kind in enumerate(types) if kind in added and tokens[i]}
        self.markers = self._find_markers()

    def __len__(self) -> int:
        return len(self.tokens)

    def is_control(self, token: int) -> bool:
        """Whether the token has no text (a marker such as ``<｜User｜>``)."""
        return self.types[token] == TokenType.CONTROL

    def token_bytes(self, token: int) -> bytes:
        """The UTF-8 bytes (maybe part of a character) that a token stands for, markers included."""
        text = self.tokens[token]
        if self.types[token] in (TokenType.CONTROL, TokenType.USER_DEFINED):
            return text.encode()
        alphabet = byte_alphabet()
        try:
            return bytes(alphabet[char] for char in text)
        except KeyError:  # not in the alphabet: an added token that the file marks as normal
            return text.encode()

    def _find_markers(self) -> Markers:
        find = self.added.get
        return Markers(
            think=find("<think>"),
            end_think=find("</think>"),
            user=find("<｜User｜>"),
            assistant=find("<｜Assistant｜>"),
            calls_begin=find("<｜tool▁calls▁begin｜>"),
            calls_end=find("<｜tool▁calls▁end｜>"),
            call_begin=find("<｜tool▁call▁begin｜>"),
            call_end=find("<｜tool▁call▁end｜>"),
            tool_sep=find("<｜tool▁sep｜>"),
        )
