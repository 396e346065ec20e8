from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trimaran_gateway.output.collect import Answer
from trimaran_gateway.output.events import TextDelta, TokenEntry
from trimaran_gateway.output.parser import OutputFormat, OutputParser
from trimaran_gateway.text.tokenizer import Tokenizer

BEGIN, END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL, CALL_END, SEP = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"
PLAIN = st.text(st.characters(exclude_characters="\ufffd<", exclude_categories=["Cs"]), max_size=25)


def fenced(name: str, arguments: str) -> str:
    return f"{CALL}function{SEP}{name}\n```json\n{arguments}\n```{CALL_END}"


def inline(name: str, arguments: str) -> str:
    return f"{CALL}{name}{SEP}{arguments}{CALL_END}"


def parse(tokenizer: Tokenizer, text: str, output: OutputFormat, sizes: list[int] | None = None) -> Any:
    """The answer, with ids fed in batches of the given sizes."""
    ids = tokenizer.encode(text)
    parser = OutputParser(tokenizer.vocabulary, output)
    answer = Answer()
    start = 0
    for size in [*(sizes or []), len(ids)]:
        for event in parser.feed(ids[start : start + size]):
            answer.add(event)
        start += size
    for event in parser.finish():
        answer.add(event)
    return answer, parser


@settings(max_examples=40, deadline=None)
@given(PLAIN, PLAIN, st.lists(st.integers(1, 5), max_size=20))
def test_any_chunks_give_the_same_split(
    tokenizer: Tokenizer, thought: str, said: str, sizes: list[int]
) -> None:
    output = OutputFormat(reasoning=True)
    answer, _ = parse(tokenizer, f"{thought}</think>{said}", output, sizes)
    assert answer.reasoning == thought.lstrip("\r\n").rstrip()
    assert answer.content == said.lstrip("\r\n")


@settings(max_examples=40, deadline=None)
@given(PLAIN, st.lists(st.text("ab \n", min_size=1, max_size=3), max_size=3), st.lists(st.integers(1, 5)))
def test_stop_strings_after_the_reasoning(
    tokenizer: Tokenizer, said: str, stops: list[str], sizes: list[int]
) -> None:
    output = OutputFormat(reasoning=True, stops=tuple(stops))
    answer, parser = parse(tokenizer, f"ab \n ba</think>{said}", output, sizes)
    assert answer.reasoning == "ab \n ba"
    visible = said.lstrip("\r\n")
    ends = [visible.find(stop) + len(stop) for stop in stops if stop in visible]
    if ends:
        assert visible[: min(ends)] == answer.content + parser.stop_sequence
    else:
        assert answer.content == visible


def test_reasoning_opened_by_the_model(tokenizer: Tokenizer) -> None:
    answer, parser = parse(tokenizer, "<think>\nhm\n</think>\n\nyes", OutputFormat())
    assert (answer.reasoning, answer.content) == ("hm", "yes")
    assert parser.reasoning_tokens == len(tokenizer.encode("<think>\nhm\n</think>"))


def test_reasoning_that_never_ends(tokenizer: Tokenizer) -> None:
    answer, _ = parse(tokenizer, "hm, well", OutputFormat(reasoning=True))
    assert (answer.reasoning, answer.content) == ("hm, well", "")


def test_a_stray_closing_marker_has_no_text(tokenizer: Tokenizer) -> None:
    answer, _ = parse(tokenizer, "yes</think> and no", OutputFormat())
    assert (answer.reasoning, answer.content) == ("", "yes and no")


def test_plain_output_keeps_everything(tokenizer: Tokenizer) -> None:
    answer, _ = parse(tokenizer, "\n<think>a</think>\nb ", OutputFormat(chat=False))
    assert answer.content == "\n<think>a</think>\nb "


@pytest.mark.parametrize("form", [fenced, inline])
@settings(max_examples=40, deadline=None)
@given(
    arguments=st.dictionaries(st.text(max_size=5), st.text('ab`\n"é🙂 {}', max_size=12), max_size=3),
    sizes=st.lists(st.integers(1, 7), max_size=40),
)
def test_calls_in_any_chunks(
    tokenizer: Tokenizer, form: Any, arguments: dict[str, str], sizes: list[int]
) -> None:
    written = json.dumps(arguments, ensure_ascii=False)
    text = f"think</think>\n\nI look.\n\n{BEGIN}{form('f_1', written)}\n{form('g', '{}')}{END}"
    answer, parser = parse(tokenizer, text, OutputFormat(reasoning=True, tools=True), sizes)
    assert answer.content == "I look."
    assert [call.name for call in answer.calls] == ["f_1", "g"]
    assert answer.calls[0].arguments == written
    assert answer.calls[1].arguments == "{}"
    assert parser.calls == 2
    assert len({call.call_id for call in answer.calls}) == 2


@pytest.mark.parametrize(
    ("body", "name", "arguments"),
    [
        (f"function{SEP}f", "f", "{}"),
        (f"f{SEP}", "f", "{}"),
        (f"function{SEP}f\n", "f", "{}"),
        (f'function{SEP}f\n{{"a": 1}}', "f", '{"a": 1}'),
        (f'function{SEP}f\n```\n{{"a": 1}}\n```\n', "f", '{"a": 1}'),
        (f'f{SEP} {{"a": 1}}\n', "f", '{"a": 1}'),
        (f'function{SEP}{{"a": 1}}', "function", '{"a": 1}'),
    ],
)
def test_variants_of_a_call(tokenizer: Tokenizer, body: str, name: str, arguments: str) -> None:
    answer, _ = parse(tokenizer, f"{BEGIN}{CALL}{body}{CALL_END}{END}", OutputFormat(tools=True))
    assert [(call.name, call.arguments) for call in answer.calls] == [(name, arguments)]


def test_a_call_may_begin_inside_the_reasoning(tokenizer: Tokenizer) -> None:
    text = f"I call f.{BEGIN}{fenced('f', '{}')}{END}"
    answer, _ = parse(tokenizer, text, OutputFormat(reasoning=True, tools=True))
    assert (answer.reasoning, answer.content, len(answer.calls)) == ("I call f.", "", 1)


def test_one_call_is_enough_if_asked(tokenizer: Tokenizer) -> None:
    text = f"{BEGIN}{fenced('f', '{}')}\n{fenced('g', '{}')}{END}"
    answer, parser = parse(tokenizer, text, OutputFormat(tools=True, one_call=True))
    assert parser.done
    assert [call.name for call in answer.calls] == ["f"]


def test_a_cut_call_is_not_completed(tokenizer: Tokenizer) -> None:
    answer, parser = parse(tokenizer, f'{BEGIN}{CALL}function{SEP}f\n```json\n{{"a', OutputFormat(tools=True))
    assert parser.calls == 0
    assert answer.calls[0].arguments == '{"a'


def test_without_tools_call_markers_have_no_meaning(tokenizer: Tokenizer) -> None:
    answer, _ = parse(tokenizer, f"{BEGIN}a{END}", OutputFormat())
    assert (answer.content, answer.calls) == ("a", [])


def entries_for(ids: list[int]) -> list[TokenEntry]:
    return [TokenEntry(token, -float(index)) for index, token in enumerate(ids)]


@settings(max_examples=40, deadline=None)
@given(PLAIN, st.sampled_from(["", "b", "a b"]), st.lists(st.integers(1, 5), max_size=10))
def test_entries_match_the_shown_tokens(tokenizer: Tokenizer, said: str, stop: str, sizes: list[int]) -> None:
    ids = tokenizer.encode(said)
    parser = OutputParser(tokenizer.vocabulary, OutputFormat(chat=False, stops=(stop,) if stop else ()))
    events, start = [], 0
    for size in [*sizes, len(ids)]:
        events += parser.feed(ids[start : start + size], entries_for(ids)[start : start + size])
        start += size
    events += parser.finish()
    texts = [event for event in events if isinstance(event, TextDelta)]
    tokens = [entry.token for event in texts for entry in event.entries]
    shown = "".join(event.text for event in texts)
    assert tokens == ids[: len(tokens)]
    if parser.stop_sequence is None:
        assert tokens == ids
    else:
        assert tokenizer.decode(tokens).startswith(shown)
        assert (
            not tokens
            or len(tokenizer.decode(tokens[:-1])) < len(shown)
            or "\ufffd" in tokenizer.decode(tokens)
        )


@settings(max_examples=60, deadline=None)
@given(
    st.text("ab \n", max_size=8),
    st.sampled_from(["", "\n", "\n\n", "\r\n"]),
    PLAIN,
    st.sampled_from(["", " ", "\n\n", "\n \n"]),
    st.booleans(),
    st.lists(st.integers(1, 5), max_size=10),
)
def test_entries_of_a_chat_are_the_tokens_of_its_content(
    tokenizer: Tokenizer, thought: str, gap: str, said: str, end: str, calls: bool, sizes: list[int]
) -> None:
    """But for those that are trimmed in part: the white space of the others is not among them."""
    text = f"{thought}</think>{gap}{said}{end}"
    if calls:
        text += f"{BEGIN}{fenced('f', '{}')}{END}"
    ids = tokenizer.encode(text)
    parser = OutputParser(tokenizer.vocabulary, OutputFormat(reasoning=True, tools=calls))
    events, start = [], 0
    for size in [*sizes, len(ids)]:
        events += parser.feed(ids[start : start + size], entries_for(ids)[start : start + size])
        start += size
    events += parser.finish()
    content = [event for event in events if isinstance(event, TextDelta) and event.kind == "content"]
    shown = "".join(event.text for event in content)
    tokens = [tokenizer.decode([entry.token]) for event in content for entry in event.entries]
    if "\ufffd" in "".join(tokens):
        return  # a character in several tokens
    assert shown in "".join(tokens)
    if tokens:
        assert not (len(tokens) > 1 and tokens[0].strip("\r\n") == "")
        left, right = "".join(tokens).split(shown, 1) if shown else ("", "")
        assert left.strip() == right.strip() == ""
        assert len(left) < len(tokens[0])
        assert len(right) < len(tokens[-1])


def test_entries_of_line_breaks_that_are_trimmed_are_left_out(tokenizer: Tokenizer) -> None:
    pieces = ["a", "</think>", "\n", "\n", "b", " ", "c"]
    ids = [token for piece in pieces for token in tokenizer.encode(piece)]
    parser = OutputParser(tokenizer.vocabulary, OutputFormat(reasoning=True))
    events = [*parser.feed(ids, entries_for(ids)), *parser.finish()]
    content = [event for event in events if isinstance(event, TextDelta) and event.kind == "content"]
    tokens = [entry.token for event in content for entry in event.entries]
    assert tokenizer.decode(tokens) == "".join(event.text for event in content) == "b c"
