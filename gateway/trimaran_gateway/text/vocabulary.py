"""The tokens of a GGUF file: their bytes, their kinds, and the markers that DeepSeek models speak with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trimaran.vocabulary import ADDED_TYPES, TokenType, token_bytes


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
        self.added = {tokens[i]: i for i, kind in enumerate(types) if kind in ADDED_TYPES and tokens[i]}
        self.markers = self._find_markers()

    def __len__(self) -> int:
        return len(self.tokens)

    def is_control(self, token: int) -> bool:
        """Whether the token has no text (a marker such as ``<｜User｜>``)."""
        return self.types[token] == TokenType.CONTROL

    def token_bytes(self, token: int) -> bytes:
        """The UTF-8 bytes (maybe part of a character) that a token stands for, markers included."""
        return token_bytes(self.tokens[token], self.types[token])

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
