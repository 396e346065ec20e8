"""Log probabilities of tokens, in the forms of `/v1/chat/completions`, `/v1/completions` and vLLM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trimaran_gateway.output.events import TokenEntry
from trimaran_gateway.text.detokenizer import Detokenizer
from trimaran_gateway.text.vocabulary import Vocabulary


def chat_logprobs(vocabulary: Vocabulary, entries: Sequence[TokenEntry]) -> dict[str, Any]:
    """`logprobs` of a chat choice."""
    content = [
        {
            **_chat_token(vocabulary, entry.token, entry.logprob),
            "top_logprobs": [_chat_token(vocabulary, token, value) for token, value in entry.top],
        }
        for entry in entries
    ]
    return {"content": content, "refusal": None}


def prompt_logprobs(
    vocabulary: Vocabulary, entries: Sequence[TokenEntry], count: int
) -> list[dict[str, Any] | None]:
    """vLLM's `prompt_logprobs`: null for the first token, then by token id its own and `count` alternatives.

    `rank` is 1 for the most likely token, and null where the token is not among the alternatives.
    """
    positions: list[dict[str, Any] | None] = [None]
    for entry in entries:
        top = entry.top[:count]
        ranks: dict[int, int | None] = {token: rank for rank, (token, _) in enumerate(top, 1)}
        values = {entry.token: entry.logprob, **dict(top)}
        positions.append(
            {
                str(token): {
                    "logprob": value,
                    "rank": ranks.get(token),
                    "decoded_token": _text(vocabulary, token),
                }
                for token, value in values.items()
            }
        )
    return positions


class TextLogprobs:
    """Builds the `logprobs` of a plain completion, whose text offsets run through all of a choice's chunks.

    Args:
        vocabulary: the model's.
        count: alternatives per token.
    """

    def __init__(self, vocabulary: Vocabulary, count: int) -> None:
        self._vocabulary = vocabulary
        self._count = count
        self._decoder = Detokenizer(vocabulary)
        self._offset = 0

    def of_prompt(self, first: int, entries: Sequence[TokenEntry]) -> dict[str, Any]:
        """The object for a prompt; its `first` token follows nothing and has no probability."""
        head = self._lists([first])
        rest = self.add(entries)
        nothing = {"token_logprobs": [None], "top_logprobs": [None]}
        return {name: [*{**head, **nothing}[name], *values] for name, values in rest.items()}

    def add(self, entries: Sequence[TokenEntry]) -> dict[str, Any]:
        """The object for the next tokens."""
        return {
            **self._lists([entry.token for entry in entries]),
            "token_logprobs": [entry.logprob for entry in entries],
            "top_logprobs": [self._alternatives(entry) for entry in entries],
        }

    def _lists(self, ids: Sequence[int]) -> dict[str, list[Any]]:
        offsets = []
        for token in ids:
            offsets.append(self._offset)
            self._offset += len(self._decoder.feed(token))
        return {"tokens": [_name(self._vocabulary, token) for token in ids], "text_offset": offsets}

    def _alternatives(self, entry: TokenEntry) -> dict[str, float]:
        """By text, the most likely one where two tokens look alike; the token itself is always there."""
        found: dict[str, float] = {}
        for token, value in (*entry.top[: self._count], (entry.token, entry.logprob)):
            found.setdefault(_name(self._vocabulary, token), value)
        return found


def _name(vocabulary: Vocabulary, token: int) -> str:
    """A token's text, or OpenAI's way to write bytes that are none by themselves: `bytes:\\xe2\\x80`."""
    piece = vocabulary.token_bytes(token)
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def _text(vocabulary: Vocabulary, token: int) -> str:
    """A token's text by itself; U+FFFD stands for part of a character."""
    return vocabulary.token_bytes(token).decode(errors="replace")


def _chat_token(vocabulary: Vocabulary, token: int, value: float) -> dict[str, Any]:
    return {
        "token": _text(vocabulary, token),
        "logprob": value,
        "bytes": list(vocabulary.token_bytes(token)),
    }
