"""The vocabulary of a GGUF file as llguidance wants it: bytes by id, special tokens, ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llguidance import LLTokenizer, TokenizerWrapper
from trimaran.vocabulary import TokenType, token_bytes

_END_KEYS = ("eos", "eot", "eom")


@dataclass(frozen=True)
class TokenTable:
    """What llguidance asks of a tokeniser; the names are its own.

    Attributes:
        tokens: UTF-8 bytes (maybe part of a character) by id.
        special_token_ids: tokens that no text contains; grammars name them by id.
        end_ids: tokens that end a generation, the most usual one first.
    """

    tokens: Sequence[bytes]
    special_token_ids: Sequence[int]
    end_ids: Sequence[int]
    bos_token_id: int | None = None

    @property
    def eos_token_id(self) -> int:
        """The token that ends a sequence."""
        return self.end_ids[0]

    def __call__(self, _text: bytes) -> list[int]:
        """Nothing is encoded here: grammars constrain bytes, whichever tokens spell them."""
        return []


def read_token_table(metadata: Mapping[str, Any]) -> TokenTable | None:
    """The table of a file's `tokenizer.ggml.*` keys; None if it cannot serve grammars."""
    texts = metadata.get("tokenizer.ggml.tokens")
    ends = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in _END_KEYS]
    end_ids = list(dict.fromkeys(int(end) for end in ends if end is not None))
    if metadata.get("tokenizer.ggml.model") != "gpt2" or texts is None or not end_ids:
        return None
    stored = metadata.get("tokenizer.ggml.token_type")
    kinds = [TokenType.NORMAL] * len(texts) if stored is None else [int(kind) for kind in stored]
    special = [i for i, (text, kind) in enumerate(zip(texts, kinds, strict=True)) if _is_special(text, kind)]
    tokens = [token_bytes(text, kind) for text, kind in zip(texts, kinds, strict=True)]
    return TokenTable(tokens, special, end_ids)


def make_tokenizer(table: TokenTable) -> LLTokenizer:
    """llguidance's own form of the table: a trie over all tokens."""
    return LLTokenizer(TokenizerWrapper(table), eos_token=list(table.end_ids))


def _is_special(text: str, kind: int) -> bool:
    """Markers, and what is never to be written; some files call plain letters user-defined too."""
    if kind == TokenType.USER_DEFINED:
        return text.startswith("<") and text.endswith(">")
    return kind in (TokenType.CONTROL, TokenType.UNUSED)
