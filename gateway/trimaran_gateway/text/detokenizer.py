"""Token ids to text, as they come: no half character ever leaves."""

from __future__ import annotations

import codecs

from trimaran_gateway.text.vocabulary import Vocabulary

_new_decoder = codecs.getincrementaldecoder("utf-8")


class Detokenizer:
    """Decodes a stream of ids. The concatenated output equals decoding all ids at once.

    Control tokens have no text. Bytes that can never become UTF-8 come out as U+FFFD.
    """

    def __init__(self, vocabulary: Vocabulary, *, keep_control: bool = False) -> None:
        self._vocabulary = vocabulary
        self._keep_control = keep_control
        self._decoder = _new_decoder(errors="replace")

    def feed(self, token: int) -> str:
        """The text that is certain once `token` is known; may be empty."""
        if self._vocabulary.is_control(token) and not self._keep_control:
            return ""
        return self._decoder.decode(self._vocabulary.token_bytes(token))

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that never became whole."""
        return self._decoder.decode(b"", final=True)
