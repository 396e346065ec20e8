"""Byte-level BPE built from a GGUF file's `tokenizer.ggml.*` keys."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer as BpeTokenizer
from tokenizers.models import BPE
from trimaran.errors import ModelFileError
from trimaran.vocabulary import TokenType

from trimaran_gateway.text.pretokenizers import pre_tokenizer
from trimaran_gateway.text.vocabulary import Vocabulary

QUOTE = "\ufdd0"
"""A code point that is no character, which `quote_markers` puts into a marker to make it plain text."""

_SLICE_CHARS = 64 << 10
# No family's piece goes on from the end of a line to a visible ASCII character, nor from a letter to a space:
# the parts of a text cut there have the tokens of the whole.
_CUT = re.compile(r"(?<=\n)(?=[!-~])|(?<=[A-Za-z])(?= )")


class TooManyTokensError(Exception):
    """A text has more tokens than there may be; as a string, "at least" how many."""

    def __init__(self, at_least: int) -> None:
        super().__init__(f"at least {at_least}")


class Tokenizer:
    """Text to ids. Added tokens are found first, the text between them is cut and merged by `tokenizers`.

    Attributes:
        vocabulary: tokens by id.
        bos_id, eos_id: begin and end of a sequence; None if the file names none.
        eog_ids: tokens that end a generation (end of sentence and, where named, of turn).
        add_bos: whether plain prompts start with `bos_id`.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        bpe: BpeTokenizer,
        *,
        bos_id: int | None,
        eos_id: int | None,
        eot_id: int | None = None,
        add_bos: bool = True,
    ) -> None:
        self.vocabulary = vocabulary
        self.bos_id = bos_id
        self.eos_id = eos_id
        self.eog_ids = tuple(dict.fromkeys(i for i in (eos_id, eot_id) if i is not None))
        self.add_bos = add_bos and bos_id is not None
        self._bpe = bpe
        longest_first = sorted(vocabulary.added, key=len, reverse=True)
        self._added = re.compile(f"({'|'.join(map(re.escape, longest_first))})") if longest_first else None
        # Of a normal token each character stands for a byte, of an added one for itself: it covers no more.
        self._longest = max(map(len, vocabulary.tokens))

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        """Build the tokeniser that a GGUF file describes.

        Raises:
            ModelFileError: a key is missing, inconsistent, or names a tokeniser that is not supported.
        """
        model = metadata.get("tokenizer.ggml.model")
        if model != "gpt2":
            raise ModelFileError(
                f"tokenizer.ggml.model = {model!r} is not supported",
                remedy="supported: gpt2 (byte-level BPE), which all DeepSeek models use",
            )
        tokens = _required(metadata, "tokenizer.ggml.tokens")
        stored = metadata.get("tokenizer.ggml.token_type")
        types = [TokenType.NORMAL] * len(tokens) if stored is None else [int(kind) for kind in stored]
        if len(types) != len(tokens):
            raise ModelFileError(
                f"tokenizer.ggml.token_type has {len(types)} entries for {len(tokens)} tokens"
            )
        bpe = _build_bpe(tokens, _required(metadata, "tokenizer.ggml.merges"))
        bpe.pre_tokenizer = pre_tokenizer(str(metadata.get("tokenizer.ggml.pre", "default")))
        return cls(
            Vocabulary(tokens, types),
            bpe,
            bos_id=_token_id(metadata, "bos", len(tokens)),
            eos_id=_token_id(metadata, "eos", len(tokens)),
            eot_id=_token_id(metadata, "eot", len(tokens)),
            add_bos=bool(metadata.get("tokenizer.ggml.add_bos_token", True)),
        )

    def encode(
        self,
        text: str,
        *,
        add_bos: bool = False,
        parse_added: bool = True,
        quoted: bool = False,
        most: int | None = None,
    ) -> list[int]:
        """Token ids of `text`.

        Args:
            text: any text.
            add_bos: put the begin token first, unless the text already starts with it.
            parse_added: find control and user-defined tokens; False takes their names as plain text.
            quoted: the text went through `quote_markers`; what it quoted comes out as plain text.
            most: give up when it is clear that there are more, before the whole text is encoded, which may
                take seconds. If that shows at its end only, all are returned.

        Raises:
            TooManyTokensError: there are more than `most`.
        """
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        ids: list[int] = []
        pieces = self._added.split(text) if parse_added and self._added else [text]
        for index, piece in enumerate(pieces):
            if index % 2:
                ids.append(self.vocabulary.added[piece])
                continue
            for part in _slices(piece.replace(QUOTE, "") if quoted else piece):
                if most is not None:
                    self._check(len(ids), part, most)
                ids += self._bpe.encode(part, add_special_tokens=False).ids
        if add_bos and self.bos_id is not None and ids[:1] != [self.bos_id]:
            ids.insert(0, self.bos_id)
        return ids

    def _check(self, n_tokens: int, text: str, most: int) -> None:
        """Refuse if no tokens, however long, make up `text` and are few enough behind `n_tokens` others."""
        if n_tokens + len(text) // self._longest > most:
            raise TooManyTokensError(n_tokens + len(text) // self._longest)

    def quote_markers(self, text: str, *, keep: tuple[str, ...] = ()) -> str:
        """`text` with each added token in it, but for those to `keep`, broken by `QUOTE`.

        A client's message can so contain ``<｜Assistant｜>`` without speaking for the assistant.
        """
        text = text.replace(QUOTE, "")
        if self._added is None:
            return text
        return self._added.sub(lambda m: m[0] if m[0] in keep else m[0][0] + QUOTE + m[0][1:], text)

    def decode(self, ids: Sequence[int], *, keep_control: bool = False) -> str:
        """Text of `ids`; bytes that are no UTF-8 become U+FFFD. Control tokens have no text unless kept."""
        vocabulary = self.vocabulary
        kept = ids if keep_control else [i for i in ids if not vocabulary.is_control(i)]
        return b"".join(map(vocabulary.token_bytes, kept)).decode(errors="replace")


def _slices(text: str) -> Iterator[str]:
    """Parts that can be encoded one by one: what encoding needs besides the ids grows with the longest."""
    start = 0
    while len(text) - start > _SLICE_CHARS and (cut := _CUT.search(text, start + _SLICE_CHARS)):
        yield text[start : cut.start()]
        start = cut.start()
    if start < len(text):
        yield text[start:]


def _required(metadata: Mapping[str, Any], key: str) -> Sequence[str]:
    value = metadata.get(key)
    if value is None or isinstance(value, str) or len(value) == 0:
        raise ModelFileError(f"key {key} is missing or empty: the file brings no tokeniser")
    return value  # type: ignore[no-any-return]


def _token_id(metadata: Mapping[str, Any], name: str, n_tokens: int) -> int | None:
    key = f"tokenizer.ggml.{name}_token_id"
    value = metadata.get(key)
    if value is None:
        return None
    if not 0 <= int(value) < n_tokens:
        raise ModelFileError(f"{key} = {value} lies outside the vocabulary of {n_tokens} tokens")
    return int(value)


def _build_bpe(tokens: Sequence[str], merges: Sequence[str]) -> BpeTokenizer:
    pairs = []
    for merge in merges:
        left, separator, right = merge.partition(" ")
        if not separator:
            raise ModelFileError(f"tokenizer.ggml.merges: {merge!r} is no pair of tokens")
        pairs.append((left, right))
    vocabulary = {token: index for index, token in enumerate(tokens)}
    try:
        return BpeTokenizer(BPE(vocabulary, pairs))
    except Exception as error:  # the library raises bare Exception
        raise ModelFileError(f"tokenizer.ggml.merges do not fit the tokens: {error}") from error
