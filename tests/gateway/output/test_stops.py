from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from trimaran_gateway.output.stops import StopMatcher

LETTERS = st.text("abc\n", max_size=30)


def run(chunks: list[str], stops: list[str]) -> tuple[str, str | None]:
    matcher = StopMatcher(stops)
    shown = "".join([*(matcher.feed(chunk) for chunk in chunks), matcher.flush()])
    return shown, matcher.matched


def cut(text: str, sizes: list[int]) -> list[str]:
    chunks, start = [], 0
    for size in sizes:
        chunks.append(text[start : start + size])
        start += size
    return [*chunks, text[start:]]


@settings(max_examples=40, deadline=None)
@given(LETTERS, st.lists(st.text("abc\n", min_size=1, max_size=5), max_size=4), st.lists(st.integers(0, 4)))
def test_chunks_change_nothing(text: str, stops: list[str], sizes: list[int]) -> None:
    assert run(cut(text, sizes), stops) == run([text], stops) == run(list(text), stops)


@settings(max_examples=40, deadline=None)
@given(LETTERS, st.lists(st.text("abc\n", min_size=1, max_size=5), min_size=1, max_size=4))
def test_nothing_of_a_stop_string_is_shown(text: str, stops: list[str]) -> None:
    shown, matched = run(list(text), stops)
    if matched is None:
        assert shown == text
        assert not any(stop in text for stop in stops)
    else:
        assert text.startswith(shown + matched)
        assert not any(stop in shown for stop in stops)


def test_text_that_may_begin_a_stop_waits() -> None:
    matcher = StopMatcher(["END"])
    assert [matcher.feed(char) for char in "xENxEND"] == ["x", "", "", "ENx", "", "", ""]
    assert matcher.matched == "END"
    assert matcher.feed("more") == ""
