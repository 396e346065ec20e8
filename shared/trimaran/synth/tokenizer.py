"""A small byte-level BPE tokeniser with the special tokens of DeepSeek, and an R1-like chat template."""

from __future__ import annotations

import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice, product

import numpy as np

from trimaran.gguf.encode import Writable

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
THINKING = ("<think>", "</think>")
MARKERS = (
    "<｜User｜>",
    "<｜Assistant｜>",
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁calls▁end｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁outputs▁begin｜>",
    "<｜tool▁outputs▁end｜>",
    "<｜tool▁output▁begin｜>",
    "<｜tool▁output▁end｜>",
    "<｜tool▁sep｜>",
)
MERGES = ("h e", "l l", "he ll", "hell o", "t h", "th e", "i n", "Ġ the", "Ġ a", "e r", "Ġ Ġ", "Ċ Ċ")

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for m in messages if m.role == 'system' %}{{ m.content }}{% endfor %}"
    "{% for m in messages %}"
    "{% if m.role == 'user' %}<｜User｜>{{ m.content }}"
    "{% elif m.role == 'assistant' %}<｜Assistant｜>{{ (m.content or '').split('</think>')[-1] }}"
    "{% for call in (m.tool_calls if m.tool_calls is defined else []) or [] %}"
    "{{ '<｜tool▁calls▁begin｜>' if loop.first else '\\n' }}"
    "<｜tool▁call▁begin｜>function<｜tool▁sep｜>{{ call.function.name }}\n"
    "```json\n{{ call.function.arguments }}\n```<｜tool▁call▁end｜>"
    "{{ '<｜tool▁calls▁end｜>' if loop.last else '' }}"
    "{% endfor %}<｜end▁of▁sentence｜>"
    "{% elif m.role == 'tool' %}"
    "<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>{{ m.content }}"
    "<｜tool▁output▁end｜><｜tool▁outputs▁end｜>"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<｜Assistant｜><think>\n{% endif %}"
)


@dataclass(frozen=True)
class SynthTokenizer:
    """Tokens by id, their types, and the merges in order of rank."""

    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...]

    def metadata(self) -> dict[str, Writable]:
        """The `tokenizer.*` keys."""
        return {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "deepseek-v3",
            "tokenizer.ggml.tokens": self.tokens,
            "tokenizer.ggml.token_type": np.array(self.types, np.int32),
            "tokenizer.ggml.merges": self.merges,
            "tokenizer.ggml.bos_token_id": self.tokens.index(BOS),
            "tokenizer.ggml.eos_token_id": self.tokens.index(EOS),
            "tokenizer.ggml.padding_token_id": self.tokens.index(PAD),
            "tokenizer.ggml.add_bos_token": True,
            "tokenizer.ggml.add_eos_token": False,
            "tokenizer.chat_template": CHAT_TEMPLATE,
        }


def byte_symbols() -> list[str]:
    """The printable character that stands for each byte in a byte-level vocabulary (GPT-2's convention).

    Bytes that print stand for themselves, the others for the characters from 256 on, in order.
    """
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    spare = iter(range(256, 512))
    return [chr(byte if byte in printable else next(spare)) for byte in range(256)]


@cache
def synth_tokenizer() -> SynthTokenizer:
    """All bytes, a few merges, DeepSeek's special tokens with their usual types."""
    return _tokenizer(MERGES)


def wide_tokenizer(n_tokens: int) -> SynthTokenizer:
    """The same with merges of letters to pairs and of pairs to fours, until there are `n_tokens` tokens.

    Every token can be reached by merges, and none is without text: whatever a model of random weights draws
    can be shown.

    Raises:
        ValueError: fewer tokens than the small tokeniser has, or more than such merges give.
    """
    missing = n_tokens - len(synth_tokenizer().tokens)
    merges = (*MERGES, *islice(_more_merges(), max(missing, 0)))
    if missing < 0 or len(merges) != len(MERGES) + missing:
        raise ValueError(f"no tokeniser of {n_tokens} tokens can be made")
    return _tokenizer(merges)


def _more_merges() -> Iterator[str]:
    known = {merge.replace(" ", "") for merge in MERGES}
    pairs = ["".join(pair) for pair in product(string.ascii_lowercase, repeat=2)]
    steps = ((pair[0], pair[1]) for pair in pairs)
    for left, right in (*steps, *product(pairs, repeat=2)):
        if left + right not in known:
            yield f"{left} {right}"


def _tokenizer(merges: Sequence[str]) -> SynthTokenizer:
    words = [*byte_symbols(), *(merge.replace(" ", "") for merge in merges)]
    tokens = [BOS, EOS, PAD, *words, *THINKING, *MARKERS]
    types = [CONTROL] * 3 + [NORMAL] * len(words) + [USER_DEFINED] * len(THINKING) + [CONTROL] * len(MARKERS)
    return SynthTokenizer(tuple(tokens), tuple(types), tuple(merges))
