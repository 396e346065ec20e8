"""A byte-level BPE with DeepSeek-V3's pre-tokeniser and marker names, trained on the tasks' own text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from random import Random

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from .samples import Sample
from .tasks import draw
from .template import ASSISTANT, BOS, END_THINK, EOS, PAD, THINK, USER, render_prompt

VOCAB_SIZE = 1280
HEAD_MARKERS = (BOS, EOS, PAD)  # ids 0, 1, 2 as in DeepSeek-V3
TAIL_MARKERS = (
    THINK, END_THINK, USER, ASSISTANT,
    "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>",
    "<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>", "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>",
    "<｜tool▁sep｜>",
)  # fmt: skip
MARKER_OR_DIGITS = re.compile("|".join([*map(re.escape, HEAD_MARKERS + TAIL_MARKERS), r"\d+"]))

# The three regexes of `tokenizer.ggml.pre = deepseek-v3`: numbers, CJK runs, everything else.
PATTERNS = (
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)


def _pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    splits = [pre_tokenizers.Split(Regex(p), "isolated") for p in PATTERNS]
    return pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


def _corpus(seed: int, size: int) -> Iterator[str]:
    """Text to learn the merges from: no markers, and no digits, so that every digit stays a token."""
    rng = Random(seed)
    for i in range(size):
        sample = draw(rng, i / size)
        yield from filter(None, MARKER_OR_DIGITS.split(render_prompt(sample) + sample.completion))


def train_tokenizer(seed: int = 1, size: int = 20000) -> Tokenizer:
    """Learn the merges; ids: the first three markers, 256 bytes, merges, the other markers."""
    merges_size = VOCAB_SIZE - len(HEAD_MARKERS) - len(TAIL_MARKERS)
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = _pre_tokenizer()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=merges_size, initial_alphabet=alphabet, show_progress=False)
    learner.train_from_iterator(_corpus(seed, size), trainer)
    learned = json.loads(learner.to_str())["model"]
    texts = [*HEAD_MARKERS, *sorted(learned["vocab"], key=learned["vocab"].__getitem__), *TAIL_MARKERS]
    merges = [tuple(m) for m in learned["merges"]]
    tokenizer = Tokenizer(models.BPE({text: i for i, text in enumerate(texts)}, merges))
    tokenizer.pre_tokenizer = _pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    markers = [
        AddedToken(m, special=m not in (THINK, END_THINK), normalized=False)
        for m in HEAD_MARKERS + TAIL_MARKERS
    ]
    tokenizer.add_tokens(markers)
    return tokenizer


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of `path`, trained and written there first if need be."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        train_tokenizer().save(str(path))
    tokenizer: Tokenizer = Tokenizer.from_file(str(path))
    return tokenizer


def encode_sample(tokenizer: Tokenizer, sample: Sample) -> tuple[list[int], list[int]]:
    """Token ids of the prompt, and of the completion with its end-of-sentence token.

    The two are encoded apart, as a server does that appends what the model generates.
    """
    prompt: list[int] = tokenizer.encode(render_prompt(sample), add_special_tokens=False).ids
    completion: list[int] = tokenizer.encode(sample.completion + EOS, add_special_tokens=False).ids
    return prompt, completion
