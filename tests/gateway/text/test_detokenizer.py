from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from trimaran_gateway.text.detokenizer import Detokenizer
from trimaran_gateway.text.tokenizer import Tokenizer


def stream(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    decoder = Detokenizer(tokenizer.vocabulary)
    return [*(decoder.feed(token) for token in ids), decoder.flush()]


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=60))
def test_stream_gives_the_text_back(tokenizer: Tokenizer, text: str) -> None:
    pieces = stream(tokenizer, tokenizer.encode(text, parse_added=False))
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces if "\ufffd" not in text)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 270), max_size=40))
def test_any_ids_equal_decoding_at_once(tokenizer: Tokenizer, ids: list[int]) -> None:
    assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids)


def test_half_characters_wait_and_control_tokens_vanish(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("<｜User｜>🙂", parse_added=True)
    assert stream(tokenizer, ids) == ["", "", "", "", "🙂", ""]
    assert stream(tokenizer, ids[:-1])[-1] == "\ufffd"
